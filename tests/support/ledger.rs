//! The books of the scripted authorization server: who registered, what was issued, what was spent.

use std::collections::HashMap;
use std::time::Instant;

use serde_json::{Value, json};

use super::script::{AuthorizationScript, Reuse};
use super::secret;

#[derive(Clone, Debug, Default)]
pub struct RegisteredClient {
    pub id: String,
    pub secret: Option<String>,
    /// `none`, `client_secret_basic`, `client_secret_post` or `private_key_jwt`.
    pub method: String,
    /// What verifies its assertions.
    pub jwks: Value,
    /// What it manages its registration with, where it can.
    pub management: Option<String>,
    /// Empty: any.
    pub redirect_uris: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct IssuedCode {
    pub client_id: String,
    pub redirect_uri: String,
    pub challenge: String,
    pub resource: Option<String>,
    pub scope: String,
    pub user: String,
    /// Set when redeemed: the family it started.
    pub family: Option<usize>,
}

/// Everything that descends from one code.
#[derive(Clone, Debug)]
pub struct Family {
    pub client_id: String,
    pub user: String,
    pub scope: String,
    pub resource: Option<String>,
    /// How many access tokens it has had.
    pub generation: u32,
    pub dead: bool,
}

#[derive(Clone, Debug)]
pub struct IssuedAccess {
    pub family: usize,
    pub generation: u32,
    pub scope: String,
    pub expires: Instant,
}

#[derive(Clone, Debug)]
pub struct IssuedRefresh {
    pub family: usize,
    pub spent: bool,
    /// How often it was presented, good or not.
    pub uses: u32,
    /// What its last use was answered.
    pub answer: Option<Value>,
}

/// Who a good access token stands for.
#[derive(Clone, Debug)]
pub struct Identity {
    pub user: String,
    pub scope: String,
    pub generation: u32,
}

#[derive(Default)]
pub struct Ledger {
    pub clients: HashMap<String, RegisteredClient>,
    pub codes: HashMap<String, IssuedCode>,
    pub families: Vec<Family>,
    pub access: HashMap<String, IssuedAccess>,
    pub refresh: HashMap<String, IssuedRefresh>,
    /// Successful token answers by grant type.
    pub codes_redeemed: u32,
    pub refreshes: u32,
}

impl Ledger {
    /// Redeems a code; the error is an RFC 6749 §5.2 code.
    pub fn redeem(
        &mut self,
        script: &AuthorizationScript,
        client_id: &str,
        code: &str,
        redirect_uri: &str,
        challenge: &str,
    ) -> Result<Value, &'static str> {
        let issued = self.codes.get(code).cloned().ok_or("invalid_grant")?;
        if let Some(family) = issued.family {
            // OAuth 2.1 §4.1.3: a code used twice ends what it had led to.
            self.families[family].dead = true;
            return Err("invalid_grant");
        }
        if issued.client_id != client_id
            || issued.redirect_uri != redirect_uri
            || issued.challenge != challenge
        {
            return Err("invalid_grant");
        }
        let family = self.families.len();
        self.families.push(Family {
            client_id: issued.client_id,
            user: issued.user,
            scope: issued.scope,
            resource: issued.resource,
            generation: 0,
            dead: false,
        });
        self.codes.get_mut(code).expect("known").family = Some(family);
        self.codes_redeemed += 1;
        Ok(self.issue(script, family, None))
    }

    /// Uses a refresh token; the error is an RFC 6749 §5.2 code.
    pub fn refresh(
        &mut self,
        script: &AuthorizationScript,
        client_id: &str,
        token: &str,
    ) -> Result<Value, &'static str> {
        let refresh = self.refresh.get_mut(token).ok_or("invalid_grant")?;
        refresh.uses += 1;
        let (family, spent) = (refresh.family, refresh.spent);
        if self.families[family].dead || self.families[family].client_id != client_id {
            return Err("invalid_grant");
        }
        if spent {
            return self.reused(script, family, token);
        }
        if script.rotates {
            self.refresh.get_mut(token).expect("known").spent = true;
        }
        self.refreshes += 1;
        let answer = self.issue(script, family, Some(token));
        self.refresh.get_mut(token).expect("known").answer = Some(answer.clone());
        Ok(answer)
    }

    fn reused(
        &mut self,
        script: &AuthorizationScript,
        family: usize,
        token: &str,
    ) -> Result<Value, &'static str> {
        let successor = self.refresh[token].answer.clone();
        let successor_name = successor.as_ref().and_then(|answer| answer["refresh_token"].as_str());
        // Only the token before the one in force has a grace.
        let is_previous = successor_name.is_some_and(|name| !self.refresh[name].spent);
        match script.reuse {
            Reuse::EndsFamily => {
                self.families[family].dead = true;
                Err("invalid_grant")
            }
            Reuse::SameAnswer if is_previous => Ok(successor.expect("answered")),
            Reuse::NewSuccessor if is_previous => {
                let name = successor_name.expect("answered").to_owned();
                self.refresh.get_mut(&name).expect("known").spent = true;
                let answer = self.issue(script, family, Some(token));
                self.refresh.get_mut(token).expect("known").answer = Some(answer.clone());
                Ok(answer)
            }
            Reuse::Dead | Reuse::SameAnswer | Reuse::NewSuccessor => Err("invalid_grant"),
        }
    }

    fn issue(&mut self, script: &AuthorizationScript, family: usize, previous: Option<&str>) -> Value {
        let grant = &mut self.families[family];
        grant.generation += 1;
        let access_token = secret("upstream_at");
        let issued = IssuedAccess {
            family,
            generation: grant.generation,
            scope: grant.scope.clone(),
            expires: Instant::now() + script.access_token_lifetime,
        };
        let mut answer =
            json!({"access_token": access_token, "token_type": "Bearer", "scope": grant.scope.clone()});
        self.access.insert(access_token, issued);
        if script.announces_lifetime {
            answer["expires_in"] = script.access_token_lifetime.as_secs().into();
        }
        // A server that does not rotate says nothing about the token that stays good.
        if script.issues_refresh_tokens && (script.rotates || previous.is_none()) {
            let token = secret("upstream_rt");
            answer["refresh_token"] = token.clone().into();
            self.refresh.insert(token, IssuedRefresh { family, spent: false, uses: 0, answer: None });
        }
        answer
    }

    /// Whom the token stands for; `None` when it is unknown, expired or dead.
    pub fn identify(&self, token: &str) -> Option<Identity> {
        let access = self.access.get(token)?;
        let family = &self.families[access.family];
        (!family.dead && access.expires > Instant::now()).then(|| Identity {
            user: family.user.clone(),
            scope: access.scope.clone(),
            generation: access.generation,
        })
    }

    /// RFC 7009: either kind of token ends its family.
    pub fn revoke(&mut self, token: &str) {
        let family = self
            .refresh
            .get(token)
            .map(|refresh| refresh.family)
            .or_else(|| self.access.get(token).map(|access| access.family));
        if let Some(family) = family {
            self.families[family].dead = true;
        }
    }
}
