//! What the guest says on its second serial port: the markers of `init.sh`, and between them what
//! the commands print.

use std::time::{Duration, Instant};

use super::CommandResult;

/// What one line from the guest meant.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Ready { release: String },
    Began { index: usize },
    Exited { index: usize, status: i32 },
    Output(String),
}

/// The lines of a run, sorted to the commands that printed them.
pub(crate) struct Console {
    pub(crate) results: Vec<CommandResult>,
    /// Release of the running kernel, once the guest is up.
    pub(crate) release: Option<String>,
    running: Option<(usize, Instant)>,
}

impl Console {
    pub(crate) fn new(commands: &[Vec<String>]) -> Self {
        let results = commands
            .iter()
            .map(|command| CommandResult {
                command: command.join(" "),
                status: None,
                output: String::new(),
                duration: Duration::ZERO,
            })
            .collect();
        Self { results, release: None, running: None }
    }

    /// Takes one line without its end. Output that does not end in a newline has the marker behind
    /// it on the same line, so a line may be two events.
    pub(crate) fn line(&mut self, line: &str, now: Instant) -> Vec<Event> {
        let marker = line.find("VM-EXIT: ").filter(|&at| at > 0);
        let parts = match marker {
            Some(at) => vec![&line[..at], &line[at..]],
            None => vec![line],
        };
        parts.into_iter().map(|part| self.event(part, now)).collect()
    }

    /// Whether every command has ended.
    pub(crate) fn complete(&self) -> bool {
        self.results.iter().all(|result| result.status.is_some())
    }

    fn event(&mut self, line: &str, now: Instant) -> Event {
        let event = self.parse(line);
        match &event {
            Event::Ready { release } => self.release = Some(release.clone()),
            Event::Began { index } => self.running = Some((*index, now)),
            Event::Exited { index, status } => {
                let result = &mut self.results[*index];
                result.status = Some(*status);
                if let Some((running, since)) = self.running.take()
                    && running == *index
                {
                    result.duration = now - since;
                }
            }
            Event::Output(text) => {
                if let Some((index, _)) = self.running {
                    let output = &mut self.results[index].output;
                    output.push_str(text);
                    output.push('\n');
                }
            }
        }
        event
    }

    fn parse(&self, line: &str) -> Event {
        let known = |text: &str| text.parse().ok().filter(|&index| index < self.results.len());
        if let Some(release) = line.strip_prefix("VM-READY: ") {
            return Event::Ready { release: release.to_owned() };
        }
        if let Some(index) = line.strip_prefix("VM-BEGIN: ").and_then(known) {
            return Event::Began { index };
        }
        if let Some((index, status)) =
            line.strip_prefix("VM-EXIT: ").and_then(|rest| rest.split_once(' '))
            && let (Some(index), Ok(status)) = (known(index), status.parse())
        {
            return Event::Exited { index, status };
        }
        Event::Output(line.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> Console {
        Console::new(&[vec!["first".to_owned()], vec!["second".to_owned(), "-x".to_owned()]])
    }

    #[test]
    fn output_goes_to_the_command_that_printed_it() {
        let (mut console, now) = (console(), Instant::now());
        for line in ["boot noise", "VM-READY: 6.1.0-1", "VM-BEGIN: 0000", "a", "VM-EXIT: 0000 0"] {
            console.line(line, now);
        }
        console.line("VM-BEGIN: 0001", now);
        console.line("b", now);
        console.line("VM-EXIT: 0001 124", now + Duration::from_secs(3));
        assert_eq!(console.release.as_deref(), Some("6.1.0-1"));
        let second = &console.results[1];
        assert_eq!(
            (console.results[0].output.as_str(), console.results[0].status),
            ("a\n", Some(0))
        );
        assert_eq!((second.command.as_str(), second.output.as_str()), ("second -x", "b\n"));
        assert_eq!((second.status, second.duration), (Some(124), Duration::from_secs(3)));
        assert!(console.complete());
    }

    #[test]
    fn an_exit_marker_behind_unfinished_output_is_found() {
        let (mut console, now) = (console(), Instant::now());
        console.line("VM-BEGIN: 0000", now);
        let events = console.line("no newlineVM-EXIT: 0000 1", now);
        let output = Event::Output("no newline".to_owned());
        assert_eq!(events, [output, Event::Exited { index: 0, status: 1 }]);
    }

    #[test]
    fn a_command_that_never_ended_has_no_status() {
        let (mut console, now) = (console(), Instant::now());
        console.line("VM-BEGIN: 0000", now);
        console.line("last words", now);
        assert_eq!(console.results[0].status, None);
        assert!(!console.complete());
    }

    #[test]
    fn a_marker_for_no_known_command_is_output() {
        let (mut console, now) = (console(), Instant::now());
        let line = "VM-EXIT: 0007 0";
        assert_eq!(console.line(line, now), [Event::Output(line.to_owned())]);
    }
}
