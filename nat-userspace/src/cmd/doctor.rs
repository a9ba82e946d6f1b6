//! `natgw doctor`: what stands in the way, and how to mend it.

use std::io::{self, Write};

use crate::{
    cli::{DoctorArgs, GatewayArgs},
    config::{self, Overrides},
    doctor::{self, Finding, Level, Subject},
    output::{self, Format},
};

use super::{Failure, converse};

pub(super) fn execute(
    gateway: GatewayArgs,
    args: DoctorArgs,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let DoctorArgs { config: file, xdp_mode, output } = args;
    let subject = Subject {
        named: file.is_some(),
        file: file.unwrap_or_else(|| config::CONFIG_FILE.into()),
        overrides: Overrides { name: gateway.name, state_dir: gateway.state_dir, xdp_mode },
    };
    let findings = converse(async { Ok(doctor::examine(&subject).await?) })?;
    match output.output {
        Format::Json => output::json(out, &findings)?,
        Format::Table => print(&findings, out)?,
    }
    out.flush()?;
    if doctor::is_broken(&findings) {
        let errors = findings.iter().filter(|finding| finding.level == Level::Error).count();
        let things = if errors == 1 { "one thing keeps" } else { "several things keep" };
        return Err(Failure::Failed(anyhow::anyhow!(
            "{things} the gateway from working ({errors} of {} findings); mend what is marked error",
            findings.len()
        )));
    }
    Ok(())
}

fn print(findings: &[Finding], out: &mut impl Write) -> io::Result<()> {
    for Finding { check, level, finding, fix } in findings {
        writeln!(out, "{level:<8} {check}: {finding}")?;
        if !fix.is_empty() {
            writeln!(out, "         -> {fix}")?;
        }
    }
    if findings.is_empty() {
        writeln!(out, "nothing stands in the way")?;
    }
    Ok(())
}
