//! Writing a configuration into a [`World`], a rule at a time.

use bytemuck::Zeroable;

use crate::{
    host::World,
    maps::INTERFACE_SLOTS,
    net::{Ip4, Mac, Port},
    port::PortSetImage,
    rules::{
        Address, Forward, ForwardKey, HostAddress, Interface, OneToOne, OneToOneKey, Pool,
        PortRange, PublicAddress, SnatRule, address, host_address,
    },
};

impl World {
    /// `address` is the interface's own, which the host has by that.
    pub fn add_interface(&mut self, ifindex: u32, role: u8, mac: Mac, address: Ip4, mtu: u32) {
        let interface = Interface { ifindex, role, mac, address, mtu, ..Interface::zeroed() };
        self.interfaces.insert(ifindex % INTERFACE_SLOTS, interface);
        self.add_host_address(address, ifindex);
    }

    pub fn add_host_address(&mut self, address: Ip4, ifindex: u32) {
        self.host_addresses.insert(address, HostAddress { ifindex, flags: host_address::OWNED });
    }

    /// A pool whose addresses have the given slots; the list of members lies at the pool's place
    /// times 64.
    pub fn add_pool(&mut self, index: u32, pool: Pool, slots: &[u32]) {
        let first = 64 * index;
        for (place, slot) in (first..).zip(slots) {
            self.pool_members.insert(place, *slot);
        }
        let members = first << 16 | slots.len() as u32;
        self.pools.insert(index, Pool { members, ..pool });
    }

    /// An address of a pool that gives out these ports, and whose port template has the row of its
    /// slot.
    pub fn add_address(
        &mut self,
        slot: u32,
        address: Ip4,
        pool: u32,
        ports: (u16, u16),
        flags: u32,
    ) {
        let (first, last) = ports;
        let mut ranges = [PortRange::default(); Address::RANGES];
        if let Some(range) = ranges.first_mut() {
            *range = PortRange { first, last };
        }
        self.addresses.insert(
            slot,
            Address {
                address,
                flags,
                pool,
                ports: u32::from(last) - u32::from(first) + 1,
                ranges,
                templates: [slot; 3],
                reserved: 0,
            },
        );
        self.public_addresses.insert(address, PublicAddress { slot, flags });
        self.templates.insert(slot, PortSetImage::template(&[ports], |_| false));
    }

    pub fn add_snat(&mut self, source: Ip4, prefix: u8, rule: u32, pool: u32) {
        self.snat.push((source, prefix, SnatRule { rule, pool }));
    }

    /// Forwards one port. The address has to be there.
    pub fn add_forward(&mut self, protocol: u8, public: (Ip4, u16), private: (Ip4, u16)) {
        let slot = self.public_addresses.get(&public.0).map_or(0, |public| public.slot);
        if let Some(held) = self.addresses.get_mut(&slot) {
            held.flags |= address::FORWARDS;
        }
        self.forwards.insert(
            ForwardKey { address: public.0, port: Port::new(public.1), protocol, zero: 0 },
            Forward { address: private.0, port: Port::new(private.1), slot: slot as u16 },
        );
    }

    pub fn add_one_to_one(&mut self, slot: u32, public: Ip4, private: Ip4) {
        let flags = address::ACTIVE | address::ONE_TO_ONE | address::ANSWER_ARP;
        self.addresses.insert(slot, Address { address: public, flags, ..Address::zeroed() });
        self.public_addresses.insert(public, PublicAddress { slot, flags });
        self.one_to_one.insert(
            OneToOneKey { address: private, inbound: 0 },
            OneToOne { address: public, slot },
        );
        self.one_to_one.insert(
            OneToOneKey { address: public, inbound: 1 },
            OneToOne { address: private, slot },
        );
    }
}
