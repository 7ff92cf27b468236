//! Just enough HTML reading to use a page as a person without JavaScript does: forms, buttons, meta refresh.

/// A form as the page offers it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Form {
    /// As written; empty means the page itself.
    pub action: String,
    /// Upper case.
    pub method: String,
    pub inputs: Vec<Input>,
    pub buttons: Vec<Button>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Input {
    pub name: String,
    pub value: String,
    /// Lower case; `text` when the page says nothing.
    pub kind: String,
    pub checked: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Button {
    pub name: String,
    pub value: String,
    pub label: String,
}

impl Form {
    pub fn has_field(&self, name: &str) -> bool {
        self.inputs.iter().any(|input| input.name == name)
    }

    pub fn value(&self, name: &str) -> Option<&str> {
        self.inputs.iter().find(|input| input.name == name).map(|input| input.value.as_str())
    }

    /// The button whose label says this, whatever the case.
    pub fn button(&self, label: &str) -> Option<&Button> {
        let label = label.to_lowercase();
        self.buttons.iter().find(|button| button.label.to_lowercase().contains(&label))
    }

    /// What a browser would send of its own accord: everything with a name that is not an unticked box.
    pub fn defaults(&self) -> Vec<(String, String)> {
        let ticked = |input: &&Input| input.checked || !matches!(input.kind.as_str(), "checkbox" | "radio");
        let named = self.inputs.iter().filter(|input| !input.name.is_empty()).filter(ticked);
        named.map(|input| (input.name.clone(), input.value.clone())).collect()
    }
}

/// All forms of a page, in order.
pub fn forms(html: &str) -> Vec<Form> {
    let mut forms: Vec<Form> = Vec::new();
    let mut inside = false;
    for tag in tags(html) {
        match tag.name.as_str() {
            "form" => {
                inside = true;
                let method = tag.attribute("method").unwrap_or_else(|| "get".into()).to_uppercase();
                let action = tag.attribute("action").unwrap_or_default();
                forms.push(Form { action, method, ..Form::default() });
            }
            "/form" => inside = false,
            "input" | "button" if inside => {
                let Some(form) = forms.last_mut() else { continue };
                let name = tag.attribute("name").unwrap_or_default();
                let value = tag.attribute("value");
                let kind = tag.attribute("type").map(|kind| kind.to_lowercase());
                if tag.name == "button" {
                    let label = text(tag.rest.split("</button").next().unwrap_or_default());
                    form.buttons.push(Button { name, value: value.unwrap_or_default(), label });
                } else if kind.as_deref() == Some("submit") {
                    let value = value.unwrap_or_else(|| "Submit".into());
                    form.buttons.push(Button { name, label: value.clone(), value });
                } else {
                    let kind = kind.unwrap_or_else(|| "text".into());
                    let checked = tag.attribute("checked").is_some();
                    let value = value.unwrap_or_else(|| if checked { "on".into() } else { String::new() });
                    form.inputs.push(Input { name, value, kind, checked });
                }
            }
            _ => {}
        }
    }
    forms
}

/// Where `<meta http-equiv="refresh">` sends the browser, if there is one.
pub fn meta_refresh(html: &str) -> Option<String> {
    let refresh = |tag: &Tag<'_>| {
        tag.name == "meta"
            && tag.attribute("http-equiv").is_some_and(|value| value.eq_ignore_ascii_case("refresh"))
    };
    let content = tags(html).into_iter().find(refresh)?.attribute("content")?;
    let (_, target) = content.split_once(';')?;
    let target = target.trim_start();
    let prefix = target.get(..4).filter(|prefix| prefix.eq_ignore_ascii_case("url="))?;
    Some(target.strip_prefix(prefix)?.trim().trim_matches(['\'', '"']).to_owned())
}

/// What a reader sees: no tags, no style or script, entities resolved, single spaces.
pub fn text(html: &str) -> String {
    let mut seen = String::new();
    let mut hidden = false;
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        if !hidden {
            seen.push_str(&rest[..start]);
        }
        let after = &rest[start..];
        let end = tag_end(after);
        let tag = after[1..end].to_lowercase();
        if tag.starts_with("style") || tag.starts_with("script") || tag.starts_with("head") {
            hidden = !tag.starts_with("header");
        } else if tag.starts_with("/style") || tag.starts_with("/script") || tag.starts_with("/head") {
            hidden = false;
        }
        seen.push(' ');
        rest = after.get(end + 1..).unwrap_or_default();
    }
    if !hidden {
        seen.push_str(rest);
    }
    unescape(&seen).split_whitespace().collect::<Vec<_>>().join(" ")
}

struct Tag<'a> {
    /// Lower case, with the slash of an end tag.
    name: String,
    attributes: &'a str,
    /// What follows the tag.
    rest: &'a str,
}

impl Tag<'_> {
    /// The value of an attribute, resolved; empty for one without value.
    fn attribute(&self, wanted: &str) -> Option<String> {
        let mut rest = self.attributes;
        loop {
            rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '/');
            if rest.is_empty() {
                return None;
            }
            // The first character belongs to the name whatever it is, so that this always moves on.
            let first = rest.chars().next().map_or(1, char::len_utf8);
            let end = rest[first..]
                .find(|c: char| c.is_whitespace() || c == '=' || c == '/')
                .map_or(rest.len(), |at| at + first);
            let name = &rest[..end];
            rest = rest[end..].trim_start();
            let mut value = "";
            if let Some(after) = rest.strip_prefix('=') {
                let after = after.trim_start();
                (value, rest) = match after.chars().next() {
                    Some(quote @ ('"' | '\'')) => after[1..].split_once(quote).unwrap_or((&after[1..], "")),
                    _ => after.split_at(after.find(char::is_whitespace).unwrap_or(after.len())),
                };
            }
            if name.eq_ignore_ascii_case(wanted) {
                return Some(unescape(value));
            }
        }
    }
}

fn tags(html: &str) -> Vec<Tag<'_>> {
    let mut found = Vec::new();
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        let after = &rest[start..];
        if let Some(comment) = after.strip_prefix("<!--") {
            rest = comment.split_once("-->").map_or("", |(_, rest)| rest);
            continue;
        }
        let end = tag_end(after);
        let inside = &after[1..end];
        rest = after.get(end + 1..).unwrap_or_default();
        let (name, attributes) = inside.split_at(inside.find(char::is_whitespace).unwrap_or(inside.len()));
        found.push(Tag { name: name.trim_end_matches('/').to_lowercase(), attributes, rest });
    }
    found
}

/// Where the tag that begins `html` ends; a `>` in quotes does not end it.
fn tag_end(html: &str) -> usize {
    let mut quote = None;
    for (at, c) in html.char_indices() {
        match (quote, c) {
            (None, '>') => return at,
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
    }
    html.len()
}

/// Resolves the entities that matter in attributes and text.
pub fn unescape(escaped: &str) -> String {
    let mut plain = String::new();
    let mut rest = escaped;
    while let Some(start) = rest.find('&') {
        plain.push_str(&rest[..start]);
        rest = &rest[start..];
        let entity = rest[1..].split_once(';').map(|(name, _)| name);
        match entity.and_then(character) {
            Some(c) => {
                plain.push(c);
                rest = &rest[entity.map_or(1, |name| name.len() + 2)..];
            }
            None => {
                plain.push('&');
                rest = &rest[1..];
            }
        }
    }
    plain + rest
}

fn character(entity: &str) -> Option<char> {
    match entity {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        "nbsp" => Some(' '),
        _ => {
            let digits = entity.strip_prefix('#')?;
            let code = match digits.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => digits.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}

/// Makes text safe for an attribute or for the page.
pub fn escape(plain: &str) -> String {
    plain
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}
