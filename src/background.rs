//! What goes on beside the requests: hearing of changes in the store, so that copies in memory follow within
//! milliseconds, sweeping out what has expired, and renewing what is about to.
pub mod changes;
pub mod files;
pub mod memory;
pub mod reload;
pub mod renewal;
pub mod spans;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::sync::{Mutex, watch};

use changes::{Behind, Changes};

use crate::credential::{Connections, ExchangedTokens};
use crate::oauth::server::grant::REMEMBER_REVOKED;
use crate::oauth::server::{Authority, block, token_keys};
use crate::store::record::RecordError;
use crate::store::{Change, Kind, Store, export};
use crate::upstream::idle::Idle;
use crate::upstream::resolve::Resolver;

const SWEEP: Duration = Duration::from_secs(60);
/// How long a connection nobody has asked for may be kept beyond its time.
const CLOSE: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(250);

/// Keeps copies in memory true to the store, and the store free of what has expired.
pub struct Upkeep {
    pub authority: Arc<Authority>,
    pub connections: Arc<Connections>,
    pub exchanged: Arc<ExchangedTokens>,
    /// Subscribed before anything was read from the store, so that nothing is missed in between.
    pub changes: Mutex<Changes>,
    /// Reads the configuration again.
    pub reload: Arc<dyn Fn() + Send + Sync>,
    /// Which wish for that was heard last. `None`: the store could not be asked when the file was read.
    pub heard: Mutex<Option<u64>>,
    pub idle: Idle,
    pub resolver: Arc<Resolver>,
}

#[async_trait]
impl BackgroundService for Upkeep {
    /// Goes on while the last requests end: a revocation counts for them too.
    async fn start(&self, _shutdown: ShutdownWatch) {
        let mut changes = self.changes.lock().await;
        let copies = changes.from_now_on();
        // What was read before is followed by nobody.
        self.connections.forget_all();
        self.exchanged.forget_all();
        tokio::select! {
            () = self.close_idle() => {}
            _ = async { tokio::join!(self.follow_copies(copies), self.follow_all(&mut changes)) } => {}
        }
    }
}

/// What is revoked, who is blocked and which programs may call, from the store into memory.
pub async fn read_revoked(authority: &Authority) -> Result<(), RecordError> {
    let store = authority.records.store();
    let until = authority.clock.now() + REMEMBER_REVOKED;
    for grant in store.tombstones(Kind::Grant).await? {
        authority.revoked.revoke(grant, until);
    }
    for client in store.tombstones(Kind::Client).await? {
        authority.revoked.revoke_client(client, until);
    }
    authority.revoked.block_only(block::blocked(&authority.records).await?);
    authority.services.read(&authority.records).await?;
    Ok(())
}

/// Reads the embedded store out to whoever migrates it.
pub struct Exporting {
    pub store: Arc<dyn Store>,
    pub data_dir: PathBuf,
    /// The socket is a predecessor's until then.
    pub is_the_one: Mutex<watch::Receiver<bool>>,
}

#[async_trait]
impl BackgroundService for Exporting {
    async fn start(&self, _shutdown: ShutdownWatch) {
        if self.is_the_one.lock().await.wait_for(|is_the_one| *is_the_one).await.is_err() {
            return;
        }
        if let Err(error) = export::serve(Arc::clone(&self.store), &self.data_dir).await {
            tracing::warn!(%error, "the store cannot be migrated while it is in use");
        }
    }
}

impl Upkeep {
    async fn close_idle(&self) {
        let mut close = tokio::time::interval(CLOSE);
        loop {
            close.tick().await;
            self.idle.sweep();
        }
    }

    /// Copies that are read again by whoever needs them: nothing is asked here, so nothing holds this up.
    async fn follow_copies(&self, mut changes: Changes) {
        while let Some(next) = changes.next().await {
            match next {
                Ok(Change::Of { kind: Kind::Connection, key }) => self.connections.changed(&key),
                Ok(Change::Of { kind: Kind::Challenge, key }) => {
                    self.authority.connector.challenge_changed(&key);
                }
                Ok(Change::Of { kind: Kind::Attributes, key }) => self.authority.attributes.changed(&key),
                Ok(_) => {}
                Err(Behind) => {
                    self.connections.forget_all();
                    self.authority.attributes.forget_all();
                }
            }
        }
    }

    async fn follow_all(&self, changes: &mut Changes) {
        // Whether something is still to be read that could not be read when it changed. What is copied has been forgotten
        // already, and is followed since: it is not forgotten a second time under the first requests.
        let mut missed = !self.read_ahead().await || !self.read_last().await;
        let mut sweep = tokio::time::interval(SWEEP);
        let mut again = tokio::time::interval(AGAIN);
        loop {
            tokio::select! {
                next = changes.next() => match next {
                    Some(Ok(change)) => missed |= !self.follow(change).await,
                    Some(Err(Behind)) => {
                        tracing::warn!("changes in the store were missed: reading everything again");
                        missed |= !self.follow(Change::Missed).await;
                    }
                    None => return,
                },
                () = self.authority.rekey.notified() => missed |= !self.read_keys().await,
                _ = again.tick(), if missed => missed = !self.read_all().await,
                _ = sweep.tick() => self.sweep().await,
            }
        }
    }

    /// Says whether the change is taken in.
    async fn follow(&self, change: Change) -> bool {
        match change {
            // A grant is revoked when nothing is left of it.
            Change::Of { kind: Kind::Grant, key } => {
                match self.authority.records.store().get(Kind::Grant, &key).await {
                    Ok(Some(_)) => {}
                    Ok(None) => self.revoke(key),
                    Err(error) => {
                        tracing::warn!(%error, "whether a grant was revoked is not known yet");
                        return false;
                    }
                }
            }
            // As a grant; a client whose registration ends in its time is heard of by nobody.
            Change::Of { kind: Kind::Client, key } => {
                match self.authority.records.store().get(Kind::Client, &key).await {
                    Ok(Some(_)) => {}
                    Ok(None) => {
                        let until = self.authority.clock.now() + REMEMBER_REVOKED;
                        self.authority.revoked.revoke_client(key, until);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "whether a client was deleted is not known yet");
                        return false;
                    }
                }
            }
            Change::Of { kind: Kind::Block, key } => {
                match self.authority.records.store().get(Kind::Block, &key).await {
                    Ok(Some(_)) => self.authority.revoked.block(key),
                    Ok(None) => self.authority.revoked.unblock(&key),
                    Err(error) => {
                        tracing::warn!(%error, "whether a user was blocked is not known yet");
                        return false;
                    }
                }
            }
            // As a grant.
            Change::Of { kind: Kind::Exchange, key } if self.exchanged.has(&key) => {
                match self.authority.records.store().get(Kind::Exchange, &key).await {
                    Ok(Some(_)) => {}
                    Ok(None) => self.exchanged.forget(&key),
                    Err(error) => {
                        tracing::warn!(%error, "whether an exchanged token was ended is not known yet");
                        return false;
                    }
                }
            }
            Change::Of { kind: Kind::Service, key } => {
                let changed = self.authority.services.changed(&self.authority.records, &key).await;
                self.authority.revoked.taken_back();
                if let Err(error) = changed {
                    tracing::warn!(%error, "a service account cannot be read yet");
                    return false;
                }
            }
            Change::Of {
                kind: kind @ (Kind::Organization | Kind::Membership | Kind::Configuration | Kind::Assignment),
                key,
            } => {
                if let Err(error) = self.authority.managed_changed(kind, &key).await {
                    tracing::warn!(%error, "a change of managed connections is not known yet");
                    return false;
                }
            }
            Change::Of { kind: Kind::Reload, .. } => return self.read_wish().await,
            Change::Of { kind: Kind::Key, .. } => return self.read_keys().await,
            Change::Of { .. } => {}
            Change::Missed => return self.read_all().await,
        }
        true
    }

    /// What this instance has written of late is said again first, since a failover may have lost it: before anybody
    /// reads a connection anew and sends a refresh token that is spent. Connections are forgotten only once the store
    /// answers: while it does not, those in memory serve. Keys come last: with them the first request is judged, and what
    /// is revoked has to be known by then.
    async fn read_all(&self) -> bool {
        if !self.read_ahead().await {
            return false;
        }
        self.connections.forget_all();
        self.exchanged.forget_all();
        self.authority.attributes.forget_all();
        self.read_last().await
    }

    async fn read_ahead(&self) -> bool {
        if let Err(error) = self.authority.records.reassert().await {
            tracing::warn!(%error, "what was written of late cannot be asserted yet");
            return false;
        }
        self.read_revoked().await && self.read_managed().await
    }

    async fn read_last(&self) -> bool {
        self.read_wish().await && self.read_keys().await
    }

    async fn read_keys(&self) -> bool {
        match token_keys::load(&self.authority.records, &self.authority.snapshot().config).await {
            Ok(keys) => self.authority.use_keys(keys),
            Err(error) => {
                tracing::warn!(%error, "the keys of access tokens cannot be read");
                return false;
            }
        }
        true
    }

    async fn read_revoked(&self) -> bool {
        match read_revoked(&self.authority).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "what is revoked cannot be read");
                false
            }
        }
    }

    async fn read_managed(&self) -> bool {
        match self.authority.read_managed().await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "managed connections cannot be read");
                false
            }
        }
    }

    fn revoke(&self, grant: String) {
        self.authority.revoked.revoke(grant, self.authority.clock.now() + REMEMBER_REVOKED);
    }

    async fn sweep(&self) {
        self.authority.revoked.sweep(self.authority.clock.now());
        // Routes that were made at run time come and go without a reload.
        self.resolver.keep_only(&self.authority.snapshot().routes);
        match self.authority.records.store().sweep().await {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "expired records removed"),
            Err(error) => tracing::warn!(%error, "expired records not removed"),
        }
    }
}
