//! The programs of `natgw capture` in this machine's kernel.

use anyhow::Result;
use nat_tests::{
    generator::rules,
    kernel::{Arms, Kernel},
};
use nat_userspace::datapath::AttachMode;
use rstest::rstest;

#[rstest]
#[ignore = "needs root: cargo xtask test prog"]
fn the_programs_that_show_packets_are_accepted_and_leave_no_pin(
    #[values(AttachMode::Native, AttachMode::Tc)] mode: AttachMode,
) -> Result<()> {
    let mut kernel = Kernel::start(Arms::Two, "", &rules(""), 1024)?;
    for (ifindex, name) in [(kernel.inside, "inside"), (kernel.outside, "outside")] {
        kernel.datapath.attach_xdp(ifindex, name, mode)?;
    }
    let directory = kernel.directory();
    let pins = || -> Result<usize> { Ok(std::fs::read_dir(&directory)?.count()) };
    let before = pins()?;
    let (mut capturer, _packets) = kernel.datapath.capturer().load()?;
    assert_eq!(capturer.is_tc(), mode == AttachMode::Tc);
    assert_eq!(pins()?, before + 1, "its stages, should this process die");
    assert_eq!(capturer.lost()?, 0);
    kernel.datapath.start_capture(&mut capturer)?;
    kernel.datapath.end_capture()?;
    drop(capturer);
    assert_eq!(pins()?, before);
    Ok(())
}
