//! The binary: arguments in, exit status out.

use std::{
    io::{self, BufWriter, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use nat_userspace::{
    cli::Cli,
    cmd::{self, Failure},
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let mut out = BufWriter::new(io::stdout().lock());
    let result = cmd::execute(cli, &mut out).and_then(|()| out.flush().map_err(Failure::from));
    match result {
        Ok(()) | Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(failure @ Failure::Wrong(_)) => {
            eprintln!("{failure}");
            ExitCode::from(2)
        }
        Err(failure @ Failure::Failed(_)) => {
            // One line, whatever a library put into its message.
            let line = failure.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            eprintln!("natgw: {line}");
            ExitCode::FAILURE
        }
    }
}
