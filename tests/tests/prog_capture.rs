//! The programs of `natgw capture` in this machine's kernel.

use anyhow::Result;
use nat_tests::{
    generator::rules,
    kernel::{Arms, Kernel},
};

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn the_programs_that_show_packets_are_accepted_and_leave_no_pin() -> Result<()> {
    let kernel = Kernel::start(Arms::Two, "", &rules(""), 1024)?;
    let pins = || -> Result<usize> { Ok(std::fs::read_dir(kernel.directory())?.count()) };
    let before = pins()?;
    let (capturer, _packets) = kernel.datapath.capturer().load()?;
    assert_eq!(pins()?, before + 1, "its stages, should this process die");
    assert_eq!(capturer.lost()?, 0);
    drop(capturer);
    assert_eq!(pins()?, before);
    Ok(())
}
