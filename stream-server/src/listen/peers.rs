//! How many connections there are from each address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// Counts connections by address. Clones count together.
#[derive(Clone)]
pub(super) struct Peers(Arc<Counts>);

struct Counts {
    most: u32,
    connections: Mutex<HashMap<IpAddr, u32>>,
}

/// A connection that is counted, until it is dropped.
pub(super) struct Entered(Peers, IpAddr);

impl Drop for Entered {
    fn drop(&mut self) {
        let mut connections = self.0.0.connections.lock();
        if let Some(count) = connections.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.1);
            }
        }
    }
}

impl Peers {
    /// Allows so many from one address.
    pub(super) fn new(most: u32) -> Self {
        Self(Arc::new(Counts { most, connections: Mutex::default() }))
    }

    /// Counts one more from `address`, unless there are enough.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Entered> {
        let whose = whose(address);
        let mut connections = self.0.connections.lock();
        let count = connections.entry(whose).or_default();
        if *count >= self.0.most {
            return None;
        }
        *count += 1;
        drop(connections);
        Some(Entered(self.clone(), whose))
    }
}

/// The address that stands for a client: a machine with IPv6 has as many addresses as it likes, of which the first half
/// is the same.
fn whose(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_own_count() {
        let peers = Peers::new(2);
        let enter = |address: &str| peers.enter(address.parse().unwrap());
        let first = [enter("192.0.2.1").unwrap(), enter("::ffff:192.0.2.1").unwrap()];
        assert!(enter("192.0.2.1").is_none(), "however it is written");
        let _other = enter("192.0.2.2").unwrap();
        let _network = [enter("2001:db8::1").unwrap(), enter("2001:db8::2").unwrap()];
        assert!(enter("2001:db8::3").is_none());
        assert!(enter("2001:db8:0:1::1").is_some());
        drop(first);
        let again = enter("192.0.2.1");
        assert!(again.is_some());
        drop(again);
        assert_eq!(peers.0.connections.lock().len(), 2, "who has no connection is forgotten");
    }
}
