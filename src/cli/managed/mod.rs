//! Managed connections from the command line: what `/api/v1` of a running Postern can do, said in one line each
//! (docs/managed.md). Nothing is decided here; Postern knows who the token is and what they may do.
mod access;
mod assignment;
mod configuration;
mod event;
mod organization;
mod problem;
mod remote;
mod route;
mod table;

use std::process::ExitCode;

use clap::Subcommand;

#[derive(Subcommand)]
pub enum Managed {
    /// Organisations.
    #[command(subcommand)]
    Org(organization::Organization),
    /// Who is in an organisation.
    #[command(subcommand)]
    Member(organization::Member),
    /// MCP servers that an organisation or a person has added.
    #[command(subcommand)]
    Config(configuration::Configuration),
    /// Who may use what an organisation has added.
    #[command(subcommand)]
    Assign(assignment::Assignment),
    /// Addresses of added servers.
    #[command(subcommand)]
    Route(route::Route),
    /// Short tokens for added servers.
    #[command(subcommand)]
    Token(route::Token),
    /// Who did what to managed connections, and what came of it; the newest first.
    Events(event::Events),
}

pub fn run(command: Managed) -> ExitCode {
    match command {
        Managed::Org(command) => command.run(),
        Managed::Member(command) => command.run(),
        Managed::Config(command) => command.run(),
        Managed::Assign(command) => command.run(),
        Managed::Route(command) => command.run(),
        Managed::Token(command) => command.run(),
        Managed::Events(command) => command.run(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    /// Clap finds what contradicts itself only where it is used, command by command.
    #[test]
    fn no_argument_contradicts_another() {
        crate::cli::Arguments::command().debug_assert();
    }
}
