//! What keeps protected packets in where the programs that translate do not: the guards of the interfaces,
//! and the backstop behind them.

use super::{
    Datapath, Result, backstop, load,
    pin::Guard,
    tc::{self, Place},
};

impl Datapath {
    /// Puts the guard on the egress of a public interface, or updates the one that is there.
    ///
    /// # Errors
    /// As the kernel gives them.
    pub fn attach_guard(&mut self, ifindex: u32, interface: &str) -> Result<()> {
        self.guard(Guard::Outer, ifindex, interface)
    }

    /// Puts the inner guard on the ingress of a private interface, or updates the one there: it
    /// holds where a public interface has no guard of its own yet.
    ///
    /// # Errors
    /// As the kernel gives them.
    pub fn attach_inner_guard(&mut self, ifindex: u32, interface: &str) -> Result<()> {
        self.guard(Guard::Inner, ifindex, interface)
    }

    fn guard(&mut self, guard: Guard, ifindex: u32, interface: &str) -> Result<()> {
        let program = load::classifier_mut(&mut self.bpf, guard.program())?;
        let place = Place::Guard(guard);
        tc::attach(program, place, &self.pins, &self.name, ifindex, interface)?;
        self.guarded.insert((guard, interface.to_owned()));
        Ok(())
    }

    /// Puts the backstop behind the guards, in this thread's network namespace, and takes an earlier
    /// process's away: it holds where an interface has no guard of its own yet.
    ///
    /// # Errors
    /// Where the kernel has no netfilter programs (before 6.4). An earlier one stays.
    pub fn attach_backstop(&self) -> Result<()> {
        backstop::attach(load::OBJECT, &self.pins)
    }

    /// Takes the guard off the egress of an interface.
    ///
    /// # Errors
    /// As the kernel gives them. That the interface is gone is none.
    pub fn detach_guard(&mut self, interface: &str) -> Result<()> {
        self.unguard(Guard::Outer, interface)
    }

    /// Takes the inner guard off the ingress of an interface.
    ///
    /// # Errors
    /// As above.
    pub fn detach_inner_guard(&mut self, interface: &str) -> Result<()> {
        self.unguard(Guard::Inner, interface)
    }

    pub(super) fn unguard(&mut self, guard: Guard, interface: &str) -> Result<()> {
        self.guarded.remove(&(guard, interface.to_owned()));
        tc::detach(Place::Guard(guard), &self.pins, &self.name, interface)
    }
}
