//! Man pages and completions, made from the command line's own definition.

use std::{fs, io::Write};

use clap::CommandFactory as _;

use crate::cli::{Cli, Description};

use super::Failure;

pub(super) fn execute(what: Description, out: &mut impl Write) -> Result<(), Failure> {
    let mut command = Cli::command();
    match what {
        Description::Man { directory } => {
            fs::create_dir_all(&directory)?;
            clap_mangen::generate_to(command, &directory)?;
        }
        Description::Completions { shell } => {
            clap_complete::generate(shell, &mut command, "natgw", out);
        }
    }
    Ok(())
}
