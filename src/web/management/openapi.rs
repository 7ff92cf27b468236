//! The API as an OpenAPI 3.1 document, made from the table of operations.
use std::sync::LazyLock;

use axum::extract::Extension;
use axum::http::{Method, header};
use axum::response::{IntoResponse, Response};
use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::operation::{Access, Operation, of};
use super::problem::{Document, Problem};
use super::{ROOT, operations};
use crate::web::About;

static DOCUMENT: LazyLock<Value> = LazyLock::new(document);

/// `GET /api/v1/openapi.json`: for everybody, there is nothing secret in it.
pub async fn show(Extension(about): Extension<About>) -> Response {
    match about.snapshot.config.managed {
        Some(_) => axum::Json(&*DOCUMENT).into_response(),
        None => Problem::nothing().into_response(&about.request_id),
    }
}

/// What types look like: as they are read, and as they are written.
struct Shapes {
    read: SchemaGenerator,
    written: SchemaGenerator,
}

fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut shapes = Shapes {
        read: settings.clone().for_deserialize().into_generator(),
        written: settings.for_serialize().into_generator(),
    };
    let problem = of::<Document<'_>>(&mut shapes.written);
    let mut paths = Map::new();
    for operation in operations() {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        if let Value::Object(methods) = path {
            let method = operation.method.as_str().to_ascii_lowercase();
            methods.insert(method, described(operation, &mut shapes));
        }
    }
    let mut schemas = shapes.read.take_definitions(true);
    schemas.extend(shapes.written.take_definitions(true));
    let malformed = json!({
        "description": "The request cannot be read, in words of this API or, where its path has no one meaning, of the gateway",
        "content": {
            "application/problem+json": {"schema": problem},
            "application/json": {"schema": {
                "type": "object",
                "required": ["error", "error_description"],
                "properties": {"error": {"type": "string"}, "error_description": {"type": "string"}},
            }},
        },
    });
    let problems = json!({
        "description": "What is wrong (RFC 9457)",
        "headers": {
            "WWW-Authenticate": {"schema": {"type": "string"}},
            "Retry-After": {"schema": {"type": "string"}},
        },
        "content": {"application/problem+json": {"schema": problem}},
    });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Postern management API",
            "version": "1",
            "description": "Organisations, the MCP servers that they and their people have added, and who may use these.",
        },
        "servers": [{"url": ROOT}],
        "security": [{"bearer": []}, {"session": [], "csrf": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {"Problem": problems, "Malformed": malformed},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": "__Host-postern-session"},
                "csrf": {"type": "apiKey", "in": "header", "name": "X-CSRF-Token"},
            },
        },
    })
}

fn described(operation: &Operation, shapes: &mut Shapes) -> Value {
    let is_post = operation.method == Method::POST;
    let mut parameters: Vec<Value> = operation.parameters().map(of_path).collect();
    if let Some(shape) = operation.query {
        parameters.extend(of_query(&shape(&mut shapes.read), &shapes.read));
    }
    let mut headers = Vec::new();
    headers.extend(
        (operation.is_change() && operation.versioned && !is_creation(operation))
            .then_some((header::IF_MATCH.as_str(), "The ETag of the version that is to be changed")),
    );
    headers.extend(
        (!operation.is_change() && operation.versioned)
            .then_some((header::IF_NONE_MATCH.as_str(), "The ETag of the version that is known")),
    );
    headers.extend(is_post.then_some((
        "idempotency-key",
        "The same key and the same request again are answered as before, for a day",
    )));
    parameters.extend(headers.into_iter().map(|(name, words)| {
        let schema = match name {
            "idempotency-key" => json!({"type": "string", "minLength": 1, "maxLength": 255}),
            _ => json!({"type": "string"}),
        };
        json!({"name": name, "in": "header", "description": words, "required": false, "schema": schema})
    }));
    let mut described = json!({
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": responses(operation, shapes),
    });
    if let Value::Object(described) = &mut described {
        if let Some(shape) = operation.body {
            let content = json!({"application/json": {"schema": shape(&mut shapes.read)}});
            described.insert("requestBody".to_owned(), json!({"required": true, "content": content}));
        }
        described.insert(
            "x-scope".to_owned(),
            match operation.access {
                Access::Scope(scope) => json!(scope.name()),
                Access::Session => Value::Null,
            },
        );
        if operation.access == Access::Session {
            described.insert("security".to_owned(), json!([{"session": [], "csrf": []}]));
        }
    }
    described
}

fn is_creation(operation: &Operation) -> bool {
    operation.status == axum::http::StatusCode::CREATED
}

fn of_path(name: &str) -> Value {
    let words = match name {
        "user" => "Their name, or `~` and its base64url where there is anything else in it",
        _ => "Its id",
    };
    json!({
        "name": name, "in": "path", "required": true, "description": words,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_.@~-]+$", "maxLength": 512},
    })
}

fn of_query(schema: &Schema, shapes: &SchemaGenerator) -> Vec<Value> {
    let named = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next());
    let definition = named.and_then(|name| shapes.definitions().get(name));
    let properties = definition.and_then(|schema| schema.get("properties")).and_then(Value::as_object);
    let parameter = |(name, schema): (&String, &Value)| {
        let mut schema = schema.clone();
        if let Some(schema) = schema.as_object_mut() {
            schema.remove("default");
        }
        json!({"name": name, "in": "query", "required": false, "schema": schema})
    };
    properties.into_iter().flatten().map(parameter).collect()
}

fn responses(operation: &Operation, shapes: &mut Shapes) -> Value {
    let mut done = json!({"description": operation.summary});
    if let (Value::Object(done), Some(shape)) = (&mut done, operation.answer) {
        let content = json!({"application/json": {"schema": shape(&mut shapes.written)}});
        done.insert("content".to_owned(), content);
        if operation.versioned {
            done.insert("headers".to_owned(), json!({"ETag": {"schema": {"type": "string"}}}));
        }
    }
    let mut all = Map::new();
    all.insert(operation.status.as_str().to_owned(), done);
    let mut refusals = vec!["400", "401", "403", "404", "429", "503"];
    if operation.is_change() {
        refusals.extend(["409", "422"]);
        refusals.extend((operation.versioned && !is_creation(operation)).then_some("412"));
        refusals.extend(operation.body.iter().flat_map(|_| ["413", "415"]));
    } else if operation.versioned {
        all.insert("304".to_owned(), json!({"description": "It is the version that is known"}));
    }
    for status in refusals {
        let name = if status == "400" { "Malformed" } else { "Problem" };
        all.insert(status.to_owned(), json!({"$ref": format!("#/components/responses/{name}")}));
    }
    Value::Object(all)
}
