//! The screen: lines of text, the same for a terminal and for `--once`.

use ratatui::{
    Frame, Terminal,
    backend::TestBackend,
    style::{Style, Stylize as _},
    text::Line,
    widgets::Paragraph,
};

use super::app::App;
use crate::{
    api::top::{AddressUse, Talker},
    output::span,
};

/// Columns of a frame that is printed.
const WIDTH: u16 = 110;

/// Draws what there is room for; the end of the lists is cut.
pub fn draw(frame: &mut Frame<'_>, app: &App) {
    let height = usize::from(frame.area().height);
    let mut lines = lines(app, rows(app, height));
    let keys = format!("q quit   s sort by {}   p pause", app.sort.word());
    lines.resize(lines.len().max(height.saturating_sub(1)), Line::default());
    lines.truncate(height.saturating_sub(1));
    lines.push(Line::from(keys).dim());
    frame.render_widget(Paragraph::new(lines), frame.area());
}

/// One frame as text, with everything in it.
///
/// # Errors
/// None is expected.
pub fn text(app: &App) -> std::io::Result<String> {
    let lines = lines(app, usize::MAX);
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX);
    let mut terminal =
        Terminal::new(TestBackend::new(WIDTH, height)).unwrap_or_else(|never| match never {});
    terminal
        .draw(|frame| frame.render_widget(Paragraph::new(lines), frame.area()))
        .unwrap_or_else(|never| match never {});
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for row in buffer.content.chunks(usize::from(WIDTH)) {
        let line: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    Ok(text)
}

/// How many hosts, and as many destinations, fit.
fn rows(app: &App, height: usize) -> usize {
    let fixed = lines(app, 0).len() + 1;
    (height.saturating_sub(fixed) / 2).max(3)
}

fn lines(app: &App, rows: usize) -> Vec<Line<'static>> {
    let mut lines = head(app);
    lines.push(Line::default());
    lines.push(title(format!(
        "{:<17}{:<14}{:<10}{:>9}  {:>18}{:>18}{:>18}",
        "ADDRESS", "POOL", "STATE", "SESSIONS", "TCP PORTS", "UDP PORTS", "ICMP IDS"
    )));
    lines.extend(app.now.addresses.iter().map(address));
    for (name, talkers) in [("HOST", app.hosts()), ("DESTINATION", app.destinations())] {
        lines.push(Line::default());
        lines.push(title(format!(
            "{name:<17}{:>9}{:>12}{:>12}{:>12}{:>12}{:>12}",
            "SESSIONS", "PACKETS/S", "BIT/S OUT", "BIT/S IN", "BYTES OUT", "BYTES IN"
        )));
        lines.extend(talkers.iter().take(rows).map(|it| talker(it)));
    }
    if !app.drops.is_empty() {
        lines.push(Line::default());
        lines.push(title(format!("{:<30}{:>10}{:>14}", "DROPPED", "PER SECOND", "TOTAL")));
        lines.extend(app.drops.iter().map(|(reason, total, rate)| {
            let line = Line::from(format!("{reason:<30}{:>10}{:>14}", short(*rate), short(*total)));
            if *rate > 0 { line.red() } else { line }
        }));
    }
    lines
}

fn head(app: &App) -> Vec<Line<'static>> {
    let (now, rates) = (&app.now, &app.rates);
    let percent = now.sessions * 100 / now.sessions_max.max(1);
    let mut first = format!(
        "natgw {}: up {}, {} of {} sessions ({percent} %), {} new a second",
        now.name,
        span(now.uptime_s),
        now.sessions,
        now.sessions_max,
        short(rates.new_sessions_per_second),
    );
    if app.paused {
        first += ", paused";
    }
    let way = |name: &str, packets: u64, bits: u64| {
        Line::from(format!("{name:<18}{:>10} packets/s{:>10} bit/s", short(packets), short(bits)))
    };
    let mut lines = vec![
        Line::from(first).bold(),
        way("to destinations", rates.packets_per_second_out, rates.bits_per_second_out),
        way("to private hosts", rates.packets_per_second_in, rates.bits_per_second_in),
        Line::from(format!("{:<18}{:>10} packets/s", "dropped", short(rates.drops_per_second))),
    ];
    if let Some(trouble) = &app.trouble {
        lines.push(Line::from(format!("not up to date: {trouble}")).red());
    }
    lines
}

fn title(text: String) -> Line<'static> {
    Line::styled(text, Style::new().reversed())
}

fn address(it: &AddressUse) -> Line<'static> {
    let mut fullest = 0;
    let mut used = |used: u64, capacity: u64| {
        let percent = used * 100 / capacity.max(1);
        fullest = fullest.max(percent);
        format!("{used}/{capacity} {percent:>3} %")
    };
    let (in_use, capacity) = (it.ports_in_use, it.capacity);
    let tcp = used(in_use.tcp, capacity.tcp);
    let udp = used(in_use.udp, capacity.udp);
    let icmp = used(in_use.icmp, capacity.icmp);
    let line = Line::from(format!(
        "{:<17}{:<14}{:<10}{:>9}  {tcp:>18}{udp:>18}{icmp:>18}",
        it.address.to_string(),
        it.pool,
        it.state,
        short(it.sessions)
    ));
    if fullest >= 80 { line.yellow() } else { line }
}

fn talker(it: &Talker) -> Line<'static> {
    Line::from(format!(
        "{:<17}{:>9}{:>12}{:>12}{:>12}{:>12}{:>12}",
        it.address.to_string(),
        short(it.sessions),
        short(it.packets_per_second),
        short(it.bits_per_second_out),
        short(it.bits_per_second_in),
        short(it.bytes_out),
        short(it.bytes_in)
    ))
}

/// Four digits at the most: 950, 12.3k, 4.56M. Thousands, not 1024s.
fn short(number: u64) -> String {
    if number < 1000 {
        return number.to_string();
    }
    let mut value = number as f64;
    for unit in ["k", "M", "G", "T", "P"] {
        value /= 1000.0;
        if value < 999.5 {
            return match value {
                _ if value < 9.995 => format!("{value:.2}{unit}"),
                _ if value < 99.95 => format!("{value:.1}{unit}"),
                _ => format!("{value:.0}{unit}"),
            };
        }
    }
    number.to_string()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{
        api::{
            model::{AddressState, PortsInUse},
            top::Top,
        },
        top::app::Sort,
    };

    fn top(moved: u64) -> Top {
        let ports = |tcp| PortsInUse { tcp, udp: 0, icmp: 1 };
        let talker = |address: [u8; 4]| Talker {
            address: address.into(),
            sessions: 3,
            bytes_out: 1_234_567,
            bytes_in: 999_600,
            bits_per_second_out: 8000,
            bits_per_second_in: 12_300_000,
            packets_per_second: 950,
        };
        let mut top = Top {
            name: "edge".to_owned(),
            uptime_s: 306,
            sessions: 50,
            sessions_max: 200,
            sessions_created: moved,
            addresses: vec![AddressUse {
                address: [198, 51, 100, 10].into(),
                pool: "default".to_owned(),
                state: AddressState::Active,
                sessions: 50,
                ports_in_use: ports(60_000),
                capacity: PortsInUse { tcp: 64_512, udp: 64_512, icmp: 64_512 },
            }],
            hosts: (1..=40).map(|host| talker([10, 0, 0, host])).collect(),
            destinations: vec![talker([203, 0, 113, 10])],
            ..Top::default()
        };
        top.counters.packets_out_to_destination = 1000 * moved;
        top.counters.drops.insert("unsolicited".to_owned(), moved);
        top
    }

    fn app() -> App {
        let begin = Instant::now();
        let mut app = App::new(top(0), begin, Sort::Traffic);
        app.look(top(14), begin + Duration::from_secs(2));
        app
    }

    fn screen(app: &App, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen");
        terminal.draw(|frame| draw(frame, app)).expect("drawn");
        let buffer = terminal.backend().buffer();
        let rows = buffer.content.chunks(usize::from(width));
        rows.map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>())
            .map(|line| line.trim_end().to_owned())
            .collect()
    }

    #[test]
    fn a_screen_has_everything_and_its_keys_on_the_last_line() {
        let lines = screen(&app(), 110, 30);
        assert_eq!(lines[0], "natgw edge: up 5m 6s, 50 of 200 sessions (25 %), 7 new a second");
        assert_eq!(lines[1], "to destinations        7.00k packets/s         0 bit/s");
        let line = |begin: &str| lines.iter().find(|line| line.starts_with(begin)).expect(begin);
        assert!(line("198.51.100.10").contains("60000/64512  93 %"), "{lines:#?}");
        assert!(line("203.0.113.10").contains("12.3M"));
        assert!(line("10.0.0.1 ").ends_with("1.23M       1.00M"), "{lines:#?}");
        assert!(line("unsolicited").ends_with("7            14"));
        assert_eq!(lines[29], "q quit   s sort by traffic   p pause");
    }

    #[test]
    fn hosts_are_cut_so_that_destinations_and_drops_have_room() {
        let lines = screen(&app(), 110, 30);
        let hosts = lines.iter().filter(|line| line.starts_with("10.0.0.")).count();
        assert!((3..40).contains(&hosts), "{hosts}");
        // Too small for anything: no panic.
        assert_eq!(screen(&app(), 20, 3).len(), 3);
    }

    #[test]
    fn pausing_and_trouble_are_told() {
        let mut app = app();
        app.paused = true;
        app.trouble = Some("the gateway's answer broke off".to_owned());
        let lines = screen(&app, 110, 30);
        assert!(lines[0].ends_with(", paused"));
        assert!(lines[4].starts_with("not up to date: the gateway's"), "{lines:#?}");
    }

    #[test]
    fn a_frame_as_text_has_every_host() {
        let text = text(&app()).expect("text");
        assert_eq!(text.lines().filter(|line| line.starts_with("10.0.0.")).count(), 40);
        assert!(!text.contains("q quit"));
    }

    #[test]
    fn numbers_have_four_digits_at_the_most() {
        let expected = [
            (0, "0"),
            (999, "999"),
            (1000, "1.00k"),
            (12_345, "12.3k"),
            (999_499, "999k"),
            (999_500, "1.00M"),
            (4_560_000_000, "4.56G"),
        ];
        for (number, text) in expected {
            assert_eq!(short(number), text);
        }
    }
}
