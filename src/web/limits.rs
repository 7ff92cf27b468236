//! How much anybody may have us remember: bounds on what is stored for people and programs that have proven nothing yet.
//!
//! The bounds per address are wide, because a whole company may sit behind one; what holds all addresses together is the
//! bound on everybody. Whoever meets one hears when to come again, and nothing that is in use makes room.
use std::net::{IpAddr, Ipv6Addr};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use crate::oauth::server::quota::{Each, per_second};

/// Registrations that are kept for a day although nobody has used them.
const PER_ADDRESS: Quota = per_second(1, 1_000);
const BY_EVERYBODY: Quota = per_second(5, 10_000);
/// Sign-ins at a provider that have begun; each is kept for ten minutes.
const SIGN_INS: Quota = per_second(2, 600);
const ALL_SIGN_INS: Quota = per_second(200, 20_000);
/// Authorizations under way, of one user; each is kept for ten minutes.
const PER_USER: Quota = per_second(1, 100);
/// Requests to the management API, of one user or program.
const MANAGEMENT: Quota = per_second(50, 1_000);

/// The limits of one instance.
pub struct Limits {
    address: Each<IpAddr>,
    everybody: DefaultDirectRateLimiter,
    user: Each<String>,
    management: Each<String>,
    sign_in: Each<IpAddr>,
    sign_ins: DefaultDirectRateLimiter,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            address: Each::of(PER_ADDRESS),
            everybody: RateLimiter::direct(BY_EVERYBODY),
            user: Each::of(PER_USER),
            management: Each::of(MANAGEMENT),
            sign_in: Each::of(SIGN_INS),
            sign_ins: RateLimiter::direct(ALL_SIGN_INS),
        }
    }
}

impl Limits {
    /// Whether one more registration from this address is kept.
    pub fn registration(&self, address: Option<IpAddr>) -> bool {
        self.address.admits(&network(address)) && self.everybody.check().is_ok()
    }

    /// Whether one more sign-in at a provider may begin from this address.
    pub fn sign_in(&self, address: Option<IpAddr>) -> bool {
        self.sign_in.admits(&network(address)) && self.sign_ins.check().is_ok()
    }

    /// Whether this user may begin one more authorization, or do anything else that costs as much.
    pub fn authorization(&self, user: &str) -> bool {
        self.user.admits(&user.to_owned())
    }

    /// Whether this user or program may ask the management API once more.
    pub fn management(&self, actor: &str) -> bool {
        self.management.admits(&actor.to_owned())
    }
}

/// Who has one IPv6 address has 2^64 of them.
fn network(address: Option<IpAddr>) -> IpAddr {
    match address.map(|address| address.to_canonical()) {
        Some(IpAddr::V6(address)) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
        Some(v4) => v4,
        // Those of whom it is not known share one.
        None => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sr_as_62_an_address_has_its_share_and_leaves_the_others_theirs() {
        let limits = Limits::default();
        let flood = (0..2_000).filter(|_| limits.registration(Some(IpAddr::from([192, 0, 2, 1])))).count();
        assert!((1_000..1_010).contains(&flood), "{flood}");
        assert!(limits.registration(Some(IpAddr::from([192, 0, 2, 2]))));
        let of = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]);
        let flood = (0..2_000).filter(|number| limits.registration(Some(of(*number)))).count();
        assert!((1_000..1_010).contains(&flood), "one network: {flood}");
    }

    #[test]
    fn who_asks_the_management_api_too_often_waits_and_nobody_else() {
        let limits = Limits::default();
        let flood = (0..3_000).filter(|_| limits.management("alice")).count();
        assert!((1_000..1_100).contains(&flood), "{flood}");
        assert!(limits.management("bob"));
    }

    #[test]
    fn sr_as_62_all_addresses_together_have_a_bound() {
        let limits = Limits::default();
        let from = |number: u32| Some(IpAddr::from(number.to_be_bytes()));
        let flood = (0..20_000).filter(|number| limits.registration(from(*number))).count();
        assert!((10_000..10_100).contains(&flood), "{flood}");
    }
}
