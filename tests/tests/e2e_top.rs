//! `natgw top` beside a running gateway, one frame of it.

use anyhow::{Context, Result};
use nat_tests::{
    stream::{Stream, echo_server},
    wiring::{Wiring, at_server},
};
use serde_json::{Value, json};
use xtask::lab::{SERVER, client_address};

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_frame_tells_rates_ports_and_who_talks() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    echo_server(lab.server(), 7)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let stream = Stream::start(lab.client(1), at_server(7))?;
    stream.wait_for_more(50)?;

    let top = gateway.json(&["top", "--once", "--limit", "5"])?;
    let client = client_address(1).to_string();
    let number = |path: &str| top.pointer(path).and_then(Value::as_u64).context(path.to_owned());
    assert_eq!((number("/sessions")?, number("/sessions_max")?), (1, 131_072), "{top:#}");
    for rate in ["packets_per_second_out", "bits_per_second_out", "packets_per_second_in"] {
        assert!(number(&format!("/rates/{rate}"))? > 0, "{rate}: {top:#}");
    }
    assert_eq!(top["addresses"][0]["address"], lab.eip().to_string());
    assert_eq!(number("/addresses/0/ports_in_use/tcp")?, 1);
    assert!(number("/addresses/0/capacity/tcp")? > 60_000);
    for (list, address) in [("hosts", client.clone()), ("destinations", SERVER.to_string())] {
        assert_eq!(top[list][0]["address"], json!(address), "{top:#}");
        assert_eq!(number(&format!("/{list}/0/sessions"))?, 1);
        // Of the outbound half and of the inbound one.
        for way in ["out", "in"] {
            assert!(number(&format!("/{list}/0/bits_per_second_{way}"))? > 0, "{way}: {top:#}");
        }
    }

    let text = gateway.natgw(&["top", "--once", "--sort", "address"])?.success()?;
    assert!(text.starts_with(&format!("natgw {}: up ", lab.name())), "{text}");
    let line = |begin: &str| text.lines().find(|line| line.starts_with(begin));
    for begin in ["to destinations", &lab.eip().to_string(), &client, &SERVER.to_string()] {
        assert!(line(begin).is_some(), "{begin} in {text}");
    }

    let live = gateway.natgw(&["top"])?;
    assert_eq!((live.code(), live.stdout.as_str()), (Some(1), ""));
    assert!(live.stderr.contains("--once"), "{live:?}");
    stream.finish()?;
    Ok(())
}
