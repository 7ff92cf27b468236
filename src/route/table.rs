//! All routes, by where they answer and by name: those of the configuration, fixed until it is read again, and those that
//! were made at run time ([`managed`](crate::managed)), each of which is put in and taken out on its own.
use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use subtle::ConstantTimeEq;

use super::managed::Managed;
use super::tree::Tree;
use super::{Matched, RESOURCE_METADATA, Route, RouteError, canonical_path, provider_place, with_audiences};
use crate::config::{self, IdentityProvider, MANAGED, PublicUrl};
use crate::map::Map;

/// All routes. No look-up costs more with more of them. Cheap to clone.
#[derive(Clone)]
pub struct Table {
    configured: Arc<Configured>,
    /// `None`: there are none, and their places are the configuration's.
    managed: Option<Managed>,
}

/// A route, and what of the path lies below it.
type Found<'t, 'p> = (&'t Arc<Route>, &'p str);

struct Configured {
    by_authority: Map<String, Tree>,
    by_name: Map<String, Arc<Route>>,
    places: HashSet<String>,
    public_authority: String,
    scheme: &'static str,
    default_port: u16,
}

// === impl Table ===

impl Table {
    pub fn new(public: &PublicUrl, routes: &[config::Route]) -> Self {
        let default_port = if public.is_https() { 443 } else { 80 };
        let public_authority = public.authority().to_owned();
        let mut by_authority: Map<String, Tree> = Map::default();
        let (mut by_name, mut places) = (Map::default(), HashSet::new());
        for route in with_audiences(routes.iter().map(|configured| Route::new(public, configured)).collect())
        {
            let route = Arc::new(route);
            places.insert(route.place.clone());
            by_name.insert(route.name.clone(), Arc::clone(&route));
            by_authority.entry(route.authority.clone()).or_default().insert(route);
        }
        let scheme = public.scheme();
        let configured = Configured { by_authority, by_name, places, public_authority, scheme, default_port };
        Self { configured: Arc::new(configured), managed: None }
    }

    /// From here on what lies below [`MANAGED`] is a route of these or none at all.
    pub fn with_managed(self, managed: Managed) -> Self {
        Self { managed: Some(managed), ..self }
    }

    /// With these in place of those of the same names; `None`: it is taken out.
    pub fn with(&self, changed: impl IntoIterator<Item = (String, Option<Arc<Route>>)>) -> Self {
        let managed = self.managed.clone().map(|mut managed| {
            changed.into_iter().for_each(|(name, route)| managed.set(name, route));
            managed
        });
        Self { configured: Arc::clone(&self.configured), managed }
    }

    /// `host` of the request in the form authorities are compared in: lower case, default port left out.
    pub fn authority<'h>(&self, host: &'h str) -> Result<Cow<'h, str>, RouteError> {
        // Nearly every request spells it as the configuration does: nothing to parse.
        if self.configured.by_authority.contains_key(host) || self.is_public(host) {
            return Ok(Cow::Borrowed(host));
        }
        let parsed: http::uri::Authority = host.parse().map_err(|_| RouteError::BadHost)?;
        if host.contains('@') || parsed.host().is_empty() {
            return Err(RouteError::BadHost);
        }
        let host = match parsed.port() {
            Some(port) if port.as_u16() == self.configured.default_port => {
                host.rsplit_once(':').map_or(host, |(name, _)| name)
            }
            Some(_) => host,
            None if host.ends_with(':') => return Err(RouteError::BadHost),
            None => host,
        };
        Ok(match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => Cow::Owned(host.to_ascii_lowercase()),
            false => Cow::Borrowed(host),
        })
    }

    /// Whether our own endpoints (sign-in, OAuth, pages) answer on this authority.
    pub fn is_public(&self, authority: &str) -> bool {
        authority == self.configured.public_authority
    }

    /// The longest route that `path` lies in, on a path-segment boundary. `path` is canonical.
    pub fn find<'a>(&'a self, authority: &str, path: &'a str) -> Result<Matched<'a>, RouteError> {
        if let Some(found) = self.find_managed(authority, path) {
            return found.map(|(route, rest)| Matched { route, rest }).ok_or(RouteError::NotFound);
        }
        let Some(routes) = self.configured.by_authority.get(authority) else {
            return Err(if self.is_public(authority) {
                RouteError::NotFound
            } else {
                RouteError::UnknownHost
            });
        };
        routes.find(path).ok_or(RouteError::NotFound)
    }

    /// `None`: such a path is the configuration's. Nothing tells a key that is wrong, or was good once, from a route that
    /// never was.
    fn find_managed<'t, 'p>(&'t self, authority: &str, path: &'p str) -> Option<Option<Found<'t, 'p>>> {
        let managed = self.managed.as_ref()?;
        let segments = path.strip_prefix('/')?.strip_prefix(MANAGED)?.strip_prefix('/')?;
        if !self.is_public(authority) {
            return None;
        }
        // Context, owner, name, key.
        let route = segments.split('/').nth(2).and_then(|name| managed.get(name));
        Some(route.and_then(|route| {
            let (own, rest) = path.split_at_checked(route.path.len())?;
            let is_whole = rest.is_empty() || rest.starts_with('/') && route.takes_descendants();
            (is_whole && bool::from(own.as_bytes().ct_eq(route.path.as_bytes()))).then_some((route, rest))
        }))
    }

    /// The route of this very path.
    fn at(&self, authority: &str, path: &str) -> Option<&Arc<Route>> {
        let found = match self.find_managed(authority, path) {
            Some(found) => found.filter(|(_, rest)| rest.is_empty()).map(|(route, _)| route),
            None => self.configured.by_authority.get(authority)?.at(path),
        };
        // Who asks nobody for a token is no protected resource.
        found.filter(|route| !route.kind.is_public())
    }

    /// The route whose resource metadata `path` is (RFC 9728 §3.1), if it is such a path.
    pub fn metadata(&self, authority: &str, path: &str) -> Option<Result<&Arc<Route>, RouteError>> {
        let below = path.strip_prefix(RESOURCE_METADATA)?;
        Some(self.at(authority, below).ok_or(RouteError::NotFound))
    }

    /// The route that a client of ours means by `resource` (RFC 8707), spelled in any way that leads there: the host in
    /// capitals, a slash too many. What has query, fragment or user is another resource.
    pub fn by_resource(&self, resource: &str) -> Option<&Arc<Route>> {
        let (scheme, rest) = resource.split_once("://")?;
        let (host, path) = rest.split_at_checked(rest.find('/').unwrap_or(rest.len()))?;
        if !scheme.eq_ignore_ascii_case(self.configured.scheme) {
            return None;
        }
        let authority = self.authority(host).ok()?;
        let path = canonical_path(if path.is_empty() { "/" } else { path }).ok()?;
        self.at(&authority, &path).filter(|route| route.is_ours())
    }

    pub fn by_name(&self, name: &str) -> Option<&Arc<Route>> {
        self.configured.by_name.get(name).or_else(|| self.managed.as_ref()?.get(name))
    }

    /// The same, for somebody who may use it.
    pub fn of_user(&self, name: &str, user: &str) -> Option<&Arc<Route>> {
        self.by_name(name).filter(|route| route.admits(user))
    }

    /// Whether a route injects this provider's tokens.
    pub fn injects(&self, provider: &IdentityProvider) -> bool {
        self.configured.places.contains(&provider_place(&provider.issuer))
    }

    /// Whether a route's connections belong there.
    pub fn has_place(&self, place: &str) -> bool {
        let of_managed = || {
            let (name, _) = place.split_once('\0')?;
            self.managed.as_ref()?.get(name).filter(|route| route.place == place)
        };
        self.configured.places.contains(place) || of_managed().is_some()
    }

    /// All routes, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.configured().chain(self.managed())
    }

    /// Those of the configuration.
    pub fn configured(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.configured.by_name.values()
    }

    /// Those that were made at run time.
    pub fn managed(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.managed.iter().flat_map(Managed::iter)
    }
}
