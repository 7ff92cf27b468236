//! The members of a JSON-RPC message and of its `params`, found in one pass. Which members of `params` matter is the
//! method's business, and the method may come behind them: so what is unclear there is noted, and an error for whoever
//! asks.
use std::borrow::Cow;
use std::collections::HashSet;
use std::marker::PhantomData;

use super::Unreadable;
use super::message::is_spelling_of;
use super::scan::{self, Scan};

/// With more names than that without a meaning, they are looked for by their hash.
const FEW: usize = 4;

/// A message, as it is written; `null` and nothing are different.
pub(super) struct Envelope<'t> {
    pub(super) id: Option<&'t str>,
    method: Option<&'t str>,
    params: Option<Object<'t, OfParams, 4>>,
}

/// Names that have a meaning: constants of a type, so that to compare a name with them takes a few instructions.
trait Names<const N: usize> {
    const ALL: [&'static str; N];
}

struct OfMessage;

impl Names<6> for OfMessage {
    const ALL: [&'static str; 6] = ["id", "method", "params", "jsonrpc", "result", "error"];
}

/// Whatever it is that some method looks at.
struct OfParams;

impl Names<4> for OfParams {
    const ALL: [&'static str; 4] = ["name", "uri", "ref", "arguments"];
}

/// An object's members of these names as they are written, in the names' order.
struct Object<'t, K, const N: usize> {
    values: [Option<&'t str>; N],
    others: Others<'t>,
    /// Which of the names came in another spelling too.
    is_varied: [bool; N],
    /// A member came twice, or has no readable name.
    is_unclear: bool,
    names: PhantomData<K>,
}

/// Names without a meaning, which come once as well.
#[derive(Default)]
struct Others<'t> {
    few: [Option<&'t str>; FEW],
    many: Option<HashSet<Cow<'t, str>>>,
}

impl<'t> Envelope<'t> {
    pub(super) fn read(text: &'t str) -> Result<Self, Unreadable> {
        let (mut scan, mut params) = (Scan::new(text), None);
        let mut members = Object::<OfMessage, 6>::default();
        let read = members.read(&mut scan, |name, scan| {
            if name != "params" || scan.peek() != Some(b'{') {
                return scan.value();
            }
            // Nobody looks at the whole.
            params.insert(Object::default()).read(scan, |_, scan| scan.value()).map(|()| "{}")
        });
        let is_clear = !members.is_unclear && !members.is_varied.contains(&true);
        if read.is_none() || scan.end().is_none() || !is_clear {
            return Err(Unreadable::Ambiguous);
        }
        let [id, method, ..] = members.values;
        Ok(Self { id, method, params })
    }

    /// `None`: there is none.
    pub(super) fn method(&self) -> Result<Option<Cow<'t, str>>, Unreadable> {
        self.method.map(|raw| scan::text_of(raw).ok_or(Unreadable::Ambiguous)).transpose()
    }

    /// A member of `params` as it is written. An error: they are no object, or not clear about it.
    #[inline]
    pub(super) fn param(&self, name: &str) -> Result<Option<&'t str>, Unreadable> {
        let params = self.params.as_ref().filter(|params| !params.is_unclear).ok_or(Unreadable::Ambiguous)?;
        let mut all = OfParams::ALL.iter().zip(params.values).zip(params.is_varied);
        match all.find(|((known, _), _)| **known == name) {
            Some(((_, value), false)) => Ok(value),
            _ => Err(Unreadable::Ambiguous),
        }
    }
}

impl<K, const N: usize> Default for Object<'_, K, N> {
    fn default() -> Self {
        Self {
            values: [None; N],
            others: Others::default(),
            is_varied: [false; N],
            is_unclear: false,
            names: PhantomData,
        }
    }
}

impl<'t, K: Names<N>, const N: usize> Object<'t, K, N> {
    /// `value` passes over the value of the member that it is given. `None`: it is no self.
    fn read(
        &mut self,
        scan: &mut Scan<'t>,
        mut value: impl FnMut(&str, &mut Scan<'t>) -> Option<&'t str>,
    ) -> Option<()> {
        let mut goes_on = scan.enter(b'{')?;
        while goes_on {
            let name = scan.name()?.text();
            let place = name.as_deref().and_then(Self::place);
            match place.and_then(|at| K::ALL.get(at).zip(self.values.get_mut(at))) {
                Some((known, place)) => self.is_unclear |= place.replace(value(known, scan)?).is_some(),
                None => {
                    self.note(name);
                    scan.value()?;
                }
            }
            goes_on = scan.goes_on(b'{')?;
        }
        Some(())
    }

    fn place(name: &str) -> Option<usize> {
        K::ALL.iter().position(|known| *known == name)
    }

    /// A name that is none of these.
    fn note(&mut self, name: Option<Cow<'t, str>>) {
        let Some(name) = name else {
            self.is_unclear = true;
            return;
        };
        let is_ascii = name.is_ascii();
        for (known, is_varied) in K::ALL.iter().zip(&mut self.is_varied) {
            *is_varied |= match is_ascii {
                true => name.eq_ignore_ascii_case(known),
                false => is_spelling_of(&name, known),
            };
        }
        self.is_unclear |= !self.others.insert(name);
    }
}

impl<'t> Others<'t> {
    /// Whether it is there for the first time.
    fn insert(&mut self, name: Cow<'t, str>) -> bool {
        for place in &mut self.few {
            match (place, &name) {
                (Some(known), name) if *known == *name => return false,
                (place @ None, Cow::Borrowed(name)) if self.many.is_none() => {
                    *place = Some(name);
                    return true;
                }
                _ => {}
            }
        }
        self.many.get_or_insert_default().insert(name)
    }
}
