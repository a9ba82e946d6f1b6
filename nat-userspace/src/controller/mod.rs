//! From a configuration to the contents of the maps: compile, plan, apply.
//!
//! [`compile()`] says what the maps should hold, [`plan()`] in which order to get there from what
//! they hold, [`describe`] what that means to the operator; all three are pure.
//! [`crate::datapath::Datapath::apply`] does it.

mod apply;
mod compile;
mod contents;
mod judge;
mod plan;
mod step;

pub use compile::{AddressFact, CompileError, Facts, compile};
pub use contents::{Contents, Policy, PoolContents};
pub use judge::is_allowed;
pub use plan::plan;
pub use step::{Step, describe};

#[cfg(test)]
mod tests;
