//! Competitors that the bench does not measure here, with the reason.

use std::{fs, path::Path, process::Command};

use super::report::Report;

pub(super) fn list(report: &mut Report) {
    report.skip("nftables flowtable", flowtable());
    for (name, program) in
        [("xdp-forward with flowtable", "xdp-forward"), ("VPP nat44-ed", "vpp"), ("einat", "einat")]
    {
        let reason = if installed(program) {
            format!("{program} is installed, but this bench has no topology for it")
        } else {
            format!("{program} is not installed")
        };
        report.skip(name, reason);
    }
}

fn flowtable() -> String {
    let config = Command::new("zcat").arg("/proc/config.gz").output();
    let text =
        config.map_or_else(|_| String::new(), |out| String::from_utf8_lossy(&out.stdout).into());
    if text.contains("# CONFIG_NF_FLOW_TABLE is not set") {
        "this kernel is built without CONFIG_NF_FLOW_TABLE".to_owned()
    } else if Path::new("/sys/module/nf_flow_table").exists() || text.contains("NF_FLOW_TABLE=") {
        "this kernel has it, but this bench has no topology for it".to_owned()
    } else {
        "this kernel shows no flowtable".to_owned()
    }
}

fn installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path)
            .any(|directory| fs::metadata(directory.join(program)).is_ok_and(|file| file.is_file()))
    })
}
