//! What the dataplane knows of the host: the gateway's interfaces, those that are none of it, and the
//! host's own addresses.

use std::collections::{BTreeMap, BTreeSet};

use nat_common::{
    maps,
    net::Ip4,
    rules::{HostAddress, Interface},
};

use super::{
    Datapath, Result,
    error::DatapathError,
    map_error,
    tables::{self, Kern},
};

impl Datapath {
    /// Makes an interface known to the dataplane, as receiver and as way out.
    ///
    /// # Errors
    /// Where its slot belongs to another interface whose index is equal modulo the table's size,
    /// or the interface is gone.
    pub fn set_interface(&mut self, interface: &Interface) -> Result<()> {
        let index = interface.ifindex;
        let slot = index % maps::INTERFACE_SLOTS;
        let present = match &self.slow_path {
            Some(device) if device.ifindex % maps::INTERFACE_SLOTS == slot => device.ifindex,
            _ => self.interface(slot)?.ifindex,
        };
        if present != 0 && present != index && self.attached_index(present) {
            return Err(DatapathError::Call {
                what: format!("give interface {index} a slot, which interface {present} has"),
                source: std::io::ErrorKind::AlreadyExists.into(),
            });
        }
        self.tables
            .egress
            .set(slot, index, None, 0)
            .map_err(|error| DatapathError::bpf(format!("redirect to interface {index}"), error))?;
        self.tables
            .interfaces
            .set(slot, Kern(*interface), 0)
            .map_err(map_error("write the interface table"))?;
        // Last: until then its packets go the general way.
        let link = interface.link();
        self.tables.links.set(slot, link).map_err(map_error("write the table of links"))
    }

    /// Forgets an interface; one that is not known is as good.
    ///
    /// # Errors
    /// None is expected.
    pub fn clear_interface(&mut self, ifindex: u32) -> Result<()> {
        let slot = ifindex % maps::INTERFACE_SLOTS;
        if self.interface(slot)?.ifindex != ifindex {
            return Ok(());
        }
        let free = bytemuck::Zeroable::zeroed();
        self.tables.links.set(slot, free).map_err(map_error("write the table of links"))?;
        let free: Interface = bytemuck::Zeroable::zeroed();
        self.tables
            .interfaces
            .set(slot, Kern(free), 0)
            .map_err(map_error("write the interface table"))?;
        // Index 0 empties a slot of a device map.
        self.tables
            .egress
            .set(slot, 0, None, 0)
            .map_err(|error| DatapathError::bpf("write the egress table", error))
    }

    /// The interfaces that the dataplane knows, those of an earlier process included.
    ///
    /// # Errors
    /// None is expected.
    pub fn interfaces(&self) -> Result<Vec<Interface>> {
        let used = tables::read_array(&self.tables.interfaces, |entry| entry.ifindex != 0);
        Ok(used.map_err(map_error("read the interface table"))?.into_values().collect())
    }

    pub(super) fn interface(&self, slot: u32) -> Result<Interface> {
        let entry = self.tables.interfaces.get(&slot, 0);
        entry.map(|Kern(entry)| entry).map_err(map_error("read the interface table"))
    }

    /// Whether an interface with this index still exists here.
    fn attached_index(&self, ifindex: u32) -> bool {
        nix::net::if_::if_indextoname(ifindex).is_ok()
    }

    /// Replaces the table of the host's own addresses and directed broadcasts.
    ///
    /// # Errors
    /// Where there are more than the table holds.
    pub fn set_host_addresses(&mut self, wanted: &BTreeMap<Ip4, HostAddress>) -> Result<()> {
        let table = &mut self.tables.host_addresses;
        let failed = || map_error("write the table of host addresses");
        let present = tables::read_hash(table).map_err(failed())?;
        for (address, value) in wanted {
            if present.get(address) != Some(value) {
                table.insert(Kern(*address), Kern(*value), 0).map_err(failed())?;
            }
        }
        for address in present.keys().filter(|address| !wanted.contains_key(address)) {
            table.remove(&Kern(*address)).map_err(failed())?;
        }
        Ok(())
    }

    /// Replaces the list of interfaces that are none of the gateway's: what they are told from is a
    /// public interface that has been made anew.
    ///
    /// # Errors
    /// Where there are more than the table holds; those without room are taken for unknown.
    pub fn set_other_links(&mut self, wanted: &BTreeSet<u32>) -> Result<()> {
        let table = &mut self.tables.other_links;
        let failed = || map_error("write the list of other interfaces");
        let present = tables::read_hash(table).map_err(failed())?;
        for ifindex in present.keys().filter(|ifindex| !wanted.contains(ifindex)) {
            table.remove(&Kern(*ifindex)).map_err(failed())?;
        }
        for ifindex in wanted.iter().filter(|ifindex| !present.contains_key(ifindex)) {
            table.insert(Kern(*ifindex), Kern(1), 0).map_err(failed())?;
        }
        Ok(())
    }
}
