//! Tokens for one route that a user or a program of theirs gets without a client of its own: short, with nothing to renew
//! them by, and under the same checks as any other.
use std::time::Duration;

use super::event::Event;
use super::scope::Scope;
use super::{Desk, Refused};
use crate::config::RELAYED;
use crate::oauth::server::access_token::Claims;
use crate::route::ACCESS_SCOPE;
use crate::seal;

/// How long it is good.
pub const LIFETIME: Duration = Duration::from_secs(300);

/// A token, and where it is good.
pub struct Minted {
    pub token: String,
    pub resource: String,
    pub expires_in: u64,
}

/// What tokens for the management API call the client that they were made for.
const API_CLIENT: &str = "api";

impl Desk<'_> {
    /// A token of the actor's for the management API itself.
    pub async fn mint_for_api(
        &self,
        audience: &str,
        scopes: &[Scope],
        lifetime: Duration,
    ) -> Result<String, Refused> {
        let minted = async {
            let now = self.now();
            let names: Vec<_> = scopes.iter().map(|scope| scope.name()).collect();
            let claims = Claims {
                audience,
                grant: &seal::name().map_err(|_| Refused::Unavailable)?,
                subject: &self.actor.name,
                client: API_CLIENT,
                scope: &names.join(" "),
                expires_at: now + lifetime,
            };
            self.snapshot.keys.seal_opaque(&claims, now).map_err(|_| Refused::Unavailable)
        };
        let event = Event::new("token.api").to(&self.actor.name);
        self.noted(event, minted.await).await
    }

    /// A token of the actor's for the route of a configuration.
    pub async fn mint(&self, configuration: &str) -> Result<Minted, Refused> {
        let minted = async {
            let user = &self.actor.name;
            let route =
                self.snapshot.routes.of_user(configuration, user).filter(|route| route.managed.is_some());
            let route = route.ok_or(Refused::NotFound)?;
            let standing = self.authority.connector.standing(route, user).await?;
            if standing.is_missing() {
                return Err(Refused::Conflict("connect first: the server wants a token of the user's"));
            }
            let now = self.now();
            let claims = Claims {
                audience: &route.audience_for(user),
                grant: &seal::name().map_err(|_| Refused::Unavailable)?,
                subject: user,
                client: &format!("{RELAYED}{configuration}"),
                scope: ACCESS_SCOPE,
                expires_at: now + LIFETIME,
            };
            let token = self.snapshot.keys.seal(&claims, now).map_err(|_| Refused::Unavailable)?;
            Ok(Minted { token, resource: route.resource.clone(), expires_in: LIFETIME.as_secs() })
        };
        let event = Event::new("token.mint").about(configuration).to(&self.actor.name);
        self.noted(event, minted.await).await
    }
}
