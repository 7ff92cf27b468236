//! Maps that are asked with every request: keyed by what the configuration names or what we have made ourselves, so the
//! hash need not stand up to somebody who chooses keys, as the one of the standard library does at three times the cost.
use std::collections::HashMap;

use dashmap::DashMap;
use foldhash::fast::RandomState;

pub type Map<K, V> = HashMap<K, V, RandomState>;
/// For all threads.
pub type Shared<K, V> = DashMap<K, V, RandomState>;
