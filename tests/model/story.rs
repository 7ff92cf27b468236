//! A path through the model, as somebody can read it who wants to know what went wrong.

use std::fmt::Write;

use postern::store::Row;
use postern::store::row::Body;
use stateright::Path;

use super::protocol::Action;
use super::world::{Instance, World};

/// Step by step: what happened, and how things stood then.
pub fn tell(path: Path<World, Action>) -> String {
    let mut story = String::new();
    for (world, action) in path.into_vec() {
        let _ = writeln!(story, "{}", picture(&world));
        if let Some(action) = action {
            let _ = writeln!(story, "{action:?}");
        }
    }
    story
}

fn picture(world: &World) -> String {
    let mut text = format!("    {:>2}  {}", world.now, record(&world.row));
    if world.replica != world.row {
        let _ = write!(text, "  replica: {}", record(&world.replica));
    }
    for message in &world.wire {
        let owner = message.owner;
        let _ = write!(text, "\n        a{} r{}: {:?}", owner.attempt, owner.refresh.serial, message.content);
    }
    for instance in &world.instances {
        let _ = write!(text, "\n        {}", state(instance));
    }
    text
}

fn record(row: &Row) -> String {
    match &row.body {
        Body::Connection(connection) => {
            let tokens = connection.sealed.get(1).copied().unwrap_or_default();
            let (incarnation, generation) = (&connection.incarnation, connection.generation);
            let mut text = format!("{incarnation} g{generation} r{tokens} {:?}", connection.state);
            if let Some(attempt) = &connection.attempt {
                let _ = write!(text, " {} {:?} after {:?}", attempt.id, attempt.phase, attempt.takeover);
            }
            if let Some(orphan) = &connection.orphan {
                let tokens = orphan.sealed.get(1).copied().unwrap_or_default();
                let _ = write!(text, " beside: g{} r{tokens}", orphan.generation);
            }
            format!("{text} f{}", connection.fence)
        }
        Body::Tombstone(tombstone) => format!("tombstone f{}", tombstone.fence),
        Body::Record { .. } => "no connection".to_owned(),
    }
}

fn state(instance: &Instance) -> String {
    let paused = if instance.paused.is_some() { " (stopped)" } else { "" };
    let due = if instance.reassert { " (to be said again)" } else { "" };
    format!("{:?}{paused}{due}, journal {}", instance.stage, instance.journal.len())
}
