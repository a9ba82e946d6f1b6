//! `[gateway]`.

use std::path::{Path, PathBuf};

use super::{
    super::{
        Overrides,
        defaults::{BPF_DIR, NAME, SESSIONS, STATE_DIR},
        fault::{At, Faults, nearest},
        host::HostView,
        model::{Gateway, MssClamp, Profile, XdpMode},
        parse,
        raw::RawGateway,
        reader::{Field, Scalar, Strings},
    },
    word_field,
};

/// Two map entries of about 150 bytes each: a table of this size takes 20 GB.
const MOST_SESSIONS: u32 = 1 << 26;
/// RFC 9293 section 3.7.1 has 536 as default; below 88 (Linux's TCP_MIN_MSS) peers misbehave, and an
/// IPv4 packet has room for 65,495.
const MSS: std::ops::RangeInclusive<u16> = 88..=65_495;

pub(super) fn resolve(
    raw: &RawGateway,
    overrides: &Overrides,
    host: &HostView,
    faults: &mut Faults,
) -> Gateway {
    let profile = word_field!(faults, "profile", raw.profile, Profile, Profile::Aws);
    let defaults = profile.defaults();
    let name = match raw.name.given() {
        Some(text) => faults.keep(text.at, parse::name_value(&text.value)),
        None => None,
    };
    let state_dir = directory("state_dir", &raw.state_dir, STATE_DIR, faults);
    Gateway {
        name: overrides.name.clone().or(name).unwrap_or_else(|| NAME.to_owned()),
        profile,
        public: interfaces("public", &raw.public, host, faults),
        private: interfaces("private", &raw.private, host, faults),
        xdp_mode: xdp_mode(raw, overrides, faults),
        sessions: sessions(raw, faults),
        hairpin: raw.hairpin.given().map_or(defaults.hairpin, |value| value.value),
        idle_reset: raw.idle_reset.given().map_or(defaults.idle_reset, |value| value.value),
        mss_clamp: mss_clamp(raw, faults),
        state_dir: overrides.state_dir.clone().unwrap_or(state_dir),
        bpf_dir: directory("bpf_dir", &raw.bpf_dir, BPF_DIR, faults),
    }
}

fn xdp_mode(raw: &RawGateway, overrides: &Overrides, faults: &mut Faults) -> XdpMode {
    let written = word_field!(faults, "xdp_mode", raw.xdp_mode, XdpMode, XdpMode::Auto);
    overrides.xdp_mode.unwrap_or(written)
}

fn sessions(raw: &RawGateway, faults: &mut Faults) -> u32 {
    let Some(number) = raw.sessions.given() else { return SESSIONS };
    match u32::try_from(number.value) {
        Ok(sessions @ 1..=MOST_SESSIONS) => sessions,
        _ => {
            faults.add(
                number.at,
                format!("sessions = {} is no size for the session table", number.value),
                format!("write a number from 1 to {MOST_SESSIONS}; the default is {SESSIONS}"),
            );
            SESSIONS
        }
    }
}

fn mss_clamp(raw: &RawGateway, faults: &mut Faults) -> MssClamp {
    let Some(scalar) = raw.mss_clamp.given() else { return MssClamp::Auto };
    let remedy = format!(
        "write \"auto\", \"off\" or a number from {} to {} without quotes",
        MSS.start(),
        MSS.end()
    );
    match &scalar.value {
        Scalar::Word(word) if word == "auto" => return MssClamp::Auto,
        Scalar::Word(word) if word == "off" => return MssClamp::Off,
        Scalar::Number(number) => {
            if let Some(mss) = u16::try_from(*number).ok().filter(|mss| MSS.contains(mss)) {
                return MssClamp::To(mss);
            }
            faults.add(scalar.at, format!("mss_clamp cannot be {number}"), remedy);
        }
        Scalar::Word(word) => {
            faults.add(scalar.at, format!("mss_clamp cannot be \"{word}\""), remedy);
        }
    }
    MssClamp::Auto
}

fn directory(key: &str, field: &Field<String>, default: &str, faults: &mut Faults) -> PathBuf {
    let Some(text) = field.given() else { return PathBuf::from(default) };
    if !Path::new(&text.value).is_absolute() {
        faults.add(
            text.at,
            format!("{key} \"{}\" is not an absolute path", text.value),
            format!("write {key} = \"{default}\", say"),
        );
    }
    PathBuf::from(&text.value)
}

fn interfaces(
    key: &'static str,
    field: &Field<Strings>,
    host: &HostView,
    faults: &mut Faults,
) -> Vec<String> {
    let Some(list) = field.given() else { return Vec::new() };
    if list.value.items.is_empty() && list.value.whole {
        let example = if key == "public" { "eth0" } else { "eth1" };
        faults.add(
            list.at,
            format!("the list {key} is empty"),
            format!("name an interface: {key} = [\"{example}\"]"),
        );
    }
    let mut names: Vec<String> = Vec::new();
    for item in &list.value.items {
        if names.contains(&item.value) {
            let what = format!("interface \"{}\" is twice in {key}", item.value);
            faults.add(item.at, what, "name it once");
            continue;
        }
        ethernet(&item.value, item.at, host, faults);
        names.push(item.value.clone());
    }
    names
}

/// Reports an interface that is not there or is not Ethernet.
pub(super) fn ethernet(name: &str, at: At, host: &HostView, faults: &mut Faults) -> bool {
    match host.interface(name) {
        Some(interface) if interface.ethernet => return true,
        Some(_) => faults.add(
            at,
            format!("interface \"{name}\" is not an Ethernet interface"),
            remedy(name, host),
        ),
        None => {
            faults.add(at, format!("interface \"{name}\" does not exist"), remedy(name, host));
        }
    }
    false
}

fn remedy(name: &str, host: &HostView) -> String {
    let usable: Vec<&str> = host
        .interfaces
        .iter()
        .filter(|interface| interface.ethernet)
        .map(|interface| interface.name.as_str())
        .collect();
    if usable.is_empty() {
        return "create it first: this host has no Ethernet interface".to_owned();
    }
    match nearest(name, usable.iter().copied().filter(|candidate| *candidate != name)) {
        Some(near) => format!("did you mean \"{near}\"? This host has {}", usable.join(", ")),
        None => format!("this host has {}", usable.join(", ")),
    }
}
