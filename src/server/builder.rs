//! Postern with parts of your own: the program as it is, and besides a say in its policy, further ways to a credential, and
//! whoever else wants to hear the audit log.
use std::path::PathBuf;
use std::sync::Arc;

use super::{StartError, run_with};
use crate::config::{Report, Source};
use crate::credential::{Strategies, Strategy};
use crate::policy::Hook;
use crate::telemetry::{self, audit};

/// What is built into this process besides what everybody has.
#[derive(Default)]
pub struct Extensions {
    pub(super) hook: Option<Arc<dyn Hook>>,
    pub(super) strategies: Strategies,
    pub(super) sinks: Vec<Arc<dyn audit::Sink>>,
}

/// Puts a gateway together from a configuration file and parts of your own.
///
/// ```no_run
/// # struct Mine;
/// # impl postern::policy::Hook for Mine {
/// #     fn decide(
/// #         &self,
/// #         _: &postern::policy::Question<'_>,
/// #         _: Option<&postern::mcp::Message>,
/// #     ) -> postern::policy::Ruling {
/// #         postern::policy::Ruling::Pass
/// #     }
/// # }
/// postern::server::Builder::new("postern.yaml").policy(Mine).run()?;
/// # Ok::<(), postern::server::RunError>(())
/// ```
pub struct Builder {
    config: PathBuf,
    extensions: Extensions,
}

/// Why it does not run. One line for each problem.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration, with places and what to write instead.
    #[error(transparent)]
    Config(#[from] Report),
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Builder {
    /// `config`: the configuration file, which a reload reads again.
    pub fn new(config: impl Into<PathBuf>) -> Self {
        Self { config: config.into(), extensions: Extensions::default() }
    }

    /// Asked after the rules for every request; it can take away, and never give.
    #[must_use]
    pub fn policy(mut self, hook: impl Hook + 'static) -> Self {
        self.extensions.hook = Some(Arc::new(hook));
        self
    }

    /// What `credential: {kind: custom, strategy: NAME}` means.
    #[must_use]
    pub fn strategy(mut self, name: &str, strategy: impl Strategy + 'static) -> Self {
        self.extensions.strategies.insert(name.to_owned(), Arc::new(strategy));
        self
    }

    /// Hears all that the audit log is told of credentials and decisions, whatever `server.audit_log` says.
    #[must_use]
    pub fn audit(mut self, sink: impl audit::Sink + 'static) -> Self {
        self.extensions.sinks.push(Arc::new(sink));
        self
    }

    /// Serves until SIGTERM or SIGINT, as `postern run` does. The log goes to standard error, as JSON lines.
    ///
    /// # Errors
    /// Every problem of the configuration, or why nothing can be served.
    pub fn run(self) -> Result<(), RunError> {
        let Self { config: path, extensions } = self;
        let names: Vec<String> = extensions.strategies.keys().cloned().collect();
        let source = Source::file(path, names);
        let config = source.read()?;
        telemetry::log();
        let ended = run_with(config, source, extensions);
        telemetry::output::flush();
        Ok(ended?)
    }
}
