//! `natgw top`.

use std::{
    io::{self, IsTerminal as _, Write},
    time::{Duration, Instant},
};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use serde::Serialize;

use crate::{
    api::{
        client::Client,
        top::{Top, TopQuery},
    },
    cli::{GatewayArgs, TopArgs},
    output::{self, Format},
    top::{
        Rates,
        app::{App, Key},
        view,
    },
};

use super::{Failure, client, converse};

#[derive(Serialize)]
struct Shown<'a> {
    rates: Rates,
    #[serde(flatten)]
    top: &'a Top,
}

pub(super) fn execute(
    gateway: &GatewayArgs,
    args: &TopArgs,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let json = args.output.output == Format::Json;
    let terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
    if !(args.once || json || terminal) {
        return Err(Failure::Failed(anyhow::anyhow!(
            "this is no terminal to show a live view in; natgw top --once prints one frame"
        )));
    }
    let client = client(gateway);
    let period = Duration::from_secs(args.interval);
    let begin = Instant::now();
    let mut app = App::new(look(&client, args)?, begin, args.sort);
    if !args.once && !json {
        return live(&client, args, &mut app, period);
    }
    let mut due = begin;
    loop {
        due += period;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        app.look(look(&client, args)?, Instant::now());
        let shown = Shown { rates: app.rates, top: &app.now };
        match (json, args.once) {
            (true, true) => output::json(out, &shown)?,
            (true, false) => output::json_line(out, &shown)?,
            (false, _) => out.write_all(view::text(&app)?.as_bytes())?,
        }
        if args.once {
            return Ok(());
        }
    }
}

fn look(client: &Client, args: &TopArgs) -> Result<Top, Failure> {
    let limit = TopQuery { limit: args.limit }.limit();
    converse(async { Ok(client.get(&format!("/v1/top?limit={limit}")).await?) })
}

/// Until a key ends it. The terminal is given back whatever happens.
fn live(client: &Client, args: &TopArgs, app: &mut App, period: Duration) -> Result<(), Failure> {
    let mut terminal = ratatui::try_init()?;
    let result = (|| {
        let mut due = Instant::now() + period;
        loop {
            terminal.draw(|frame| view::draw(frame, app))?;
            let now = Instant::now();
            if event::poll(due.saturating_duration_since(now))? {
                if !app.press(key(&event::read()?)) {
                    return Ok(());
                }
                continue;
            }
            due = Instant::now() + period;
            if app.paused {
                continue;
            }
            match look(client, args) {
                Ok(top) => app.look(top, Instant::now()),
                Err(error) => app.trouble = Some(error.to_string()),
            }
        }
    })();
    ratatui::restore();
    result
}

fn key(event: &Event) -> Key {
    let Event::Key(key) = event else { return Key::Other };
    if key.kind == KeyEventKind::Release {
        return Key::Other;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        KeyCode::Char('p' | ' ') => Key::Pause,
        KeyCode::Char('s') => Key::Sort,
        _ => Key::Other,
    }
}

#[cfg(test)]
mod tests {
    use ratatui::crossterm::event::KeyEvent;

    use super::*;

    #[test]
    fn keys_have_their_meaning_also_with_control() {
        let press = |code, modifiers| key(&Event::Key(KeyEvent::new(code, modifiers)));
        let plain = |code| press(code, KeyModifiers::NONE);
        assert_eq!(plain(KeyCode::Char('q')), Key::Quit);
        assert_eq!(plain(KeyCode::Char('s')), Key::Sort);
        assert_eq!(plain(KeyCode::Char('p')), Key::Pause);
        assert_eq!(plain(KeyCode::Char('c')), Key::Other);
        assert_eq!(press(KeyCode::Char('c'), KeyModifiers::CONTROL), Key::Quit);
        assert_eq!(key(&Event::Resize(1, 1)), Key::Other);
    }
}
