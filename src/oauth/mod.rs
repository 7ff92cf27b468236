//! OAuth, in both directions. Whose token is meant is never in doubt: `server` issues ours to MCP clients,
//! `client` obtains theirs from the authorization servers of upstream MCP servers.
pub mod client;
pub mod server;
