//! The members of a JSON-RPC message and of its `params`, found in one pass. Which members of `params` matter is the
//! method's business, and the method may come behind them: so what is unclear there is noted, and an error for whoever
//! asks.
use std::borrow::Cow;
use std::collections::HashSet;

use super::Unreadable;
use super::message::is_spelling_of;
use super::scan::{Scan, Text};

const MEMBERS: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];
/// Whatever it is that some method looks at.
const PARAMS: [&str; 4] = ["name", "uri", "ref", "arguments"];
/// With more names than that without a meaning, they are looked for by their hash.
const FEW: usize = 4;

/// A message; `null` and nothing are different.
pub(super) struct Envelope<'t> {
    members: Object<'t, 6>,
    params: Option<Object<'t, 4>>,
}

/// An object's members of these names as they are written, in the names' order.
struct Object<'t, const N: usize> {
    names: &'static [&'static str; N],
    values: [Option<&'t str>; N],
    /// Which of the names came in another spelling too.
    is_varied: [bool; N],
    /// A member came twice, or has no readable name.
    is_unclear: bool,
}

/// Names without a meaning, which come once as well.
#[derive(Default)]
struct Others<'t> {
    few: [Option<Cow<'t, str>>; FEW],
    many: Option<HashSet<Cow<'t, str>>>,
}

impl<'t> Envelope<'t> {
    pub(super) fn read(text: &'t str) -> Result<Self, Unreadable> {
        let (mut scan, mut params) = (Scan::new(text), None);
        let members = Object::read(&mut scan, &MEMBERS, |name, scan| {
            if name != "params" || scan.peek() != Some(b'{') {
                return scan.value();
            }
            params = Some(Object::read(scan, &PARAMS, |_, scan| scan.value())?);
            // Nobody looks at the whole.
            Ok("{}")
        })?;
        scan.end()?;
        match members.is_unclear || members.is_varied.contains(&true) {
            true => Err(Unreadable::Ambiguous),
            false => Ok(Self { members, params }),
        }
    }

    /// A member as it is written.
    pub(super) fn raw(&self, name: &str) -> Option<&'t str> {
        self.members.find(name).and_then(|(value, _)| value)
    }

    /// `None`: there is no such member.
    pub(super) fn text(&self, name: &str) -> Result<Option<Cow<'t, str>>, Unreadable> {
        self.raw(name).map(|raw| Text::of(raw)?.read()).transpose()
    }

    /// A member of `params` as it is written. An error: they are no object, or not clear about it.
    pub(super) fn param(&self, name: &str) -> Result<Option<&'t str>, Unreadable> {
        let params = self.params.as_ref().filter(|params| !params.is_unclear);
        match params.and_then(|params| params.find(name)) {
            Some((value, false)) => Ok(value),
            _ => Err(Unreadable::Ambiguous),
        }
    }
}

impl<'t, const N: usize> Object<'t, N> {
    /// `value` passes over the value of the member that it is given.
    fn read(
        scan: &mut Scan<'t>,
        names: &'static [&'static str; N],
        mut value: impl FnMut(&str, &mut Scan<'t>) -> Result<&'t str, Unreadable>,
    ) -> Result<Self, Unreadable> {
        let mut object = Self { names, values: [None; N], is_varied: [false; N], is_unclear: false };
        let (mut others, mut is_first) = (Others::default(), true);
        scan.pass(b'{')?;
        while let Some(name) = scan.member(is_first)? {
            is_first = false;
            let Ok(name) = name.read() else {
                object.is_unclear = true;
                scan.value()?;
                continue;
            };
            let mut places = names.iter().zip(&mut object.values);
            match places.find(|(known, _)| **known == name) {
                Some((known, place)) => {
                    object.is_unclear |= place.replace(value(known, scan)?).is_some();
                }
                None => {
                    let is_ascii = name.is_ascii();
                    for (known, is_varied) in names.iter().zip(&mut object.is_varied) {
                        *is_varied |= match is_ascii {
                            true => name.eq_ignore_ascii_case(known),
                            false => is_spelling_of(&name, known),
                        };
                    }
                    object.is_unclear |= !others.insert(name);
                    scan.value()?;
                }
            }
        }
        Ok(object)
    }

    /// The value of a member, and whether it came in another spelling too.
    fn find(&self, name: &str) -> Option<(Option<&'t str>, bool)> {
        let at = self.names.iter().position(|known| *known == name)?;
        Some((*self.values.get(at)?, *self.is_varied.get(at)?))
    }
}

impl<'t> Others<'t> {
    /// Whether it is there for the first time.
    fn insert(&mut self, name: Cow<'t, str>) -> bool {
        for place in &mut self.few {
            match place {
                Some(known) if *known == name => return false,
                Some(_) => {}
                None => {
                    *place = Some(name);
                    return true;
                }
            }
        }
        self.many.get_or_insert_default().insert(name)
    }
}
