//! Types that say what their JSON looks like, so that the OpenAPI document is made of the types that are answered with.

use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The schemas of named types, by name.
pub(super) type Schemas = Map<String, Value>;

/// A type whose JSON can be described.
pub(super) trait Shape {
    /// A JSON schema (draft 2020-12). A named type puts its own among `schemas` and is a reference to it.
    fn schema(schemas: &mut Schemas) -> Value;
}

/// A time: RFC 3339 in UTC, with ms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Time(pub(super) String);

impl Shape for Time {
    fn schema(_: &mut Schemas) -> Value {
        json!({ "type": "string", "format": "date-time" })
    }
}

impl Shape for String {
    fn schema(_: &mut Schemas) -> Value {
        json!({ "type": "string" })
    }
}

impl Shape for bool {
    fn schema(_: &mut Schemas) -> Value {
        json!({ "type": "boolean" })
    }
}

impl Shape for f64 {
    fn schema(_: &mut Schemas) -> Value {
        json!({ "type": "number" })
    }
}

macro_rules! integers {
    ($($type:ty: $least:expr;)*) => {$(
        impl Shape for $type {
            fn schema(_: &mut Schemas) -> Value {
                json!({ "type": "integer", "minimum": $least })
            }
        }
    )*};
}

integers! {
    u32: 0;
    u64: 0;
    usize: 0;
    i32: i32::MIN;
    i64: i64::MIN;
}

impl<T: Shape> Shape for Option<T> {
    fn schema(schemas: &mut Schemas) -> Value {
        json!({ "anyOf": [T::schema(schemas), { "type": "null" }] })
    }
}

impl<T: Shape> Shape for Vec<T> {
    fn schema(schemas: &mut Schemas) -> Value {
        json!({ "type": "array", "items": T::schema(schemas) })
    }
}

impl<T: Shape> Shape for BTreeMap<String, T> {
    fn schema(schemas: &mut Schemas) -> Value {
        json!({ "type": "object", "additionalProperties": T::schema(schemas) })
    }
}

/// Puts the schema of a named type among the others, once.
pub(super) fn named(
    schemas: &mut Schemas,
    name: &str,
    schema: impl FnOnce(&mut Schemas) -> Value,
) -> Value {
    if !schemas.contains_key(name) {
        let schema = schema(schemas);
        schemas.insert(name.to_owned(), schema);
    }
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// The schema of an object whose fields are all there always.
pub(super) fn object(description: &str, properties: Map<String, Value>) -> Value {
    let names: Vec<_> = properties.keys().cloned().collect();
    json!({
        "type": "object",
        "description": description,
        "properties": properties,
        "required": names,
    })
}

/// Structs that are answered with. Their comments are the document's.
macro_rules! shapes {
    ($(
        $(#[doc = $about:literal])+
        $name:ident {
            $(
                $(#[doc = $field_about:literal])*
                $field:ident $(as $json:literal)?: $type:ty,
            )*
        }
    )*) => {$(
        $(#[doc = $about])+
        #[derive(Debug, serde::Serialize)]
        pub(crate) struct $name {
            $(
                $(#[doc = $field_about])*
                $(#[serde(rename = $json)])?
                pub $field: $type,
            )*
        }

        impl $name {
            /// Its fields, by name.
            #[allow(unused_mut, unused_assignments, reason = "few fields have other names")]
            fn fields(
                schemas: &mut $crate::api::http::shape::Schemas,
            ) -> serde_json::Map<String, serde_json::Value> {
                let mut fields = serde_json::Map::new();
                $(
                    let mut name = stringify!($field);
                    $(name = $json;)?
                    let mut schema =
                        <$type as $crate::api::http::shape::Shape>::schema(schemas);
                    let about = concat!($($field_about),*);
                    if !about.is_empty() {
                        schema["description"] = about.trim().into();
                    }
                    fields.insert(name.to_owned(), schema);
                )*
                fields
            }
        }

        impl $crate::api::http::shape::Shape for $name {
            fn schema(
                schemas: &mut $crate::api::http::shape::Schemas,
            ) -> serde_json::Value {
                $crate::api::http::shape::named(schemas, stringify!($name), |schemas| {
                    let about = concat!($($about),+);
                    $crate::api::http::shape::object(about.trim(), Self::fields(schemas))
                })
            }
        }
    )*};
}
pub(super) use shapes;

/// Enums that are words in JSON, with all their words.
macro_rules! words {
    ($($type:ident: $($word:ident),+;)*) => {$(
        impl $crate::api::http::shape::Shape for $type {
            fn schema(
                schemas: &mut $crate::api::http::shape::Schemas,
            ) -> serde_json::Value {
                // A word that is missing in the list does not compile.
                let words = [$($type::$word),+];
                let _ = |word: $type| match word {
                    $($type::$word => {})+
                };
                $crate::api::http::shape::named(schemas, stringify!($type), |_| {
                    serde_json::json!({ "type": "string", "enum": words })
                })
            }
        }
    )*};
}
pub(super) use words;
