//! How often what is kept in memory was there when somebody asked for it.
use prometheus::{IntCounter, Result};

use super::catalogue::Catalogue;

/// Of one cache. Cheap to clone.
#[derive(Clone)]
pub struct Lookups {
    hit: IntCounter,
    miss: IntCounter,
}

/// Of each that a request may ask.
pub struct Caches {
    /// Tokens and keys that go upstream.
    pub credentials: Lookups,
    /// Verdicts on access tokens of other authorization servers.
    pub foreign_tokens: Lookups,
    /// Client metadata documents.
    pub client_documents: Lookups,
    /// What is known of users.
    pub attributes: Lookups,
}

// === impl Lookups ===

impl Lookups {
    pub fn count(&self, is_hit: bool) {
        if is_hit { self.hit.inc() } else { self.miss.inc() }
    }
}

// === impl Caches ===

impl Caches {
    pub fn new(catalogue: &Catalogue) -> Result<Self> {
        let lookups = catalogue.counters(
            "postern_cache_lookups_total",
            "Look-ups in what is kept in memory, by cache and result.",
            &["cache", "result"],
        )?;
        let of = |cache| Lookups {
            hit: lookups.with_label_values(&[cache, "hit"]),
            miss: lookups.with_label_values(&[cache, "miss"]),
        };
        Ok(Self {
            credentials: of("credentials"),
            foreign_tokens: of("foreign_tokens"),
            client_documents: of("client_documents"),
            attributes: of("attributes"),
        })
    }
}
