//! From the syntax tree of `cel` to a [`Node`]: every name, operator and function is one of ours, and every kind of value
//! that is known beforehand is one that it has a meaning for.
use cel::IdedExpr;
use cel::common::ast::{CallExpr, Expr, LiteralValue, SourceInfo, operators};

use super::Mistake;
use super::kind::Kind;
use super::names::{Name, Names};
use super::node::{Arithmetic, Comparison, Node};
use super::wanted::Wanted;

mod calls;
mod loops;

/// Deeper expressions are for nobody to read.
const DEPTH: usize = 64;

/// What became of a part of the expression; `None` where a mistake was found in it.
type Checked = Option<(Node, Kind)>;

pub(super) struct Check<'e> {
    source: &'e SourceInfo,
    /// Names are below this one alone.
    root: Option<&'static str>,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) uses: Names,
    pub(super) arguments: Wanted,
    /// The variables of the loops around, outermost first.
    variables: Vec<(&'e str, Kind)>,
    depth: usize,
}

impl<'e> Check<'e> {
    pub(super) fn new(source: &'e SourceInfo, root: Option<&'static str>) -> Self {
        Self {
            source,
            root,
            mistakes: Vec::new(),
            uses: Names::default(),
            arguments: Wanted::default(),
            variables: Vec::new(),
            depth: 0,
        }
    }

    /// The whole expression, which has to be true or false.
    pub(super) fn condition(&mut self, expr: &'e IdedExpr) -> Option<Node> {
        let (node, kind) = self.part(expr)?;
        self.require(expr, &kind, &Kind::Bool, "the expression", "compare it with something")?;
        Some(node)
    }

    fn part(&mut self, expr: &'e IdedExpr) -> Checked {
        if self.depth == DEPTH {
            return self.refuse(expr, "is nested too deeply", "write several rules");
        }
        self.depth += 1;
        let checked = self.shallow(expr);
        self.depth -= 1;
        checked
    }

    fn shallow(&mut self, expr: &'e IdedExpr) -> Checked {
        match &expr.expr {
            Expr::Literal(literal) => self.literal(expr, literal),
            Expr::Ident(name) => match self.variable(name) {
                Some(variable) => Some(variable),
                None => self.unknown_name(expr, name),
            },
            Expr::Select(select) if select.test => {
                let field = &select.field;
                if let Expr::Ident(root) = &select.operand.expr
                    && self.variable(root).is_none()
                    && Name::find(root, field).is_some()
                {
                    let what = format!("`{root}.{field}` is always there");
                    return self.refuse(expr, what, format!("write `{root}.{field}`, or compare it"));
                }
                let (of, kind) = self.chain(&select.operand, Some(field))?;
                self.member_of(expr, &kind, field)?;
                Some((Node::Has(Box::new(of), field.as_str().into()), Kind::Bool))
            }
            Expr::Select(_) => self.chain(expr, None),
            Expr::Call(call) if text_index(call).is_some() => self.chain(expr, None),
            Expr::Call(call) => self.call(expr, call),
            Expr::List(list) => {
                let mut kind = None;
                let mut nodes = Vec::with_capacity(list.elements.len());
                for element in &list.elements {
                    let (node, of) = self.part(element)?;
                    kind = Some(kind.map_or(of.clone(), |kind: Kind| kind.or(&of)));
                    nodes.push(node);
                }
                Some((Node::List(nodes.into()), Kind::List(Box::new(kind.unwrap_or(Kind::Any)))))
            }
            Expr::Comprehension(of) => self.comprehension(expr, of),
            Expr::Map(_) | Expr::Struct(_) => {
                self.refuse(expr, "maps and messages have no use here", "write a list, or compare members")
            }
            Expr::Unspecified => self.refuse(expr, "is no expression", "write a condition"),
        }
    }

    fn literal(&mut self, expr: &IdedExpr, literal: &LiteralValue) -> Checked {
        Some(match literal {
            LiteralValue::Boolean(value) => (Node::Bool(*value.inner()), Kind::Bool),
            LiteralValue::Double(value) => (Node::Double(*value.inner()), Kind::Double),
            LiteralValue::Int(value) => (Node::Int(*value.inner()), Kind::Int),
            LiteralValue::Null => (Node::Null, Kind::Null),
            LiteralValue::String(value) => (Node::Text(value.inner().into()), Kind::Text),
            LiteralValue::UInt(_) => {
                return self.refuse(expr, "unsigned numbers have no use here", "leave out the `u`");
            }
            LiteralValue::Bytes(_) => {
                return self.refuse(expr, "bytes have no use here", "leave out the `b`");
            }
        })
    }

    fn variable(&self, name: &str) -> Checked {
        let depth = self.variables.iter().rev().position(|(variable, _)| *variable == name)?;
        let (_, kind) = self.variables.iter().rev().nth(depth)?;
        Some((Node::Variable(depth), kind.clone()))
    }

    fn unknown_name<T>(&mut self, expr: &IdedExpr, name: &str) -> Option<T> {
        match Name::below(name).as_str() {
            "" => self.refuse(
                expr,
                format!("there is no `{name}`"),
                "write a name below `caller`, `request`, `mcp` or `route`",
            ),
            names => {
                self.refuse(expr, format!("`{name}` alone is no value"), format!("write one of {names}"))
            }
        }
    }

    /// A name and the members read from it: `caller.claims.team`, `mcp.arguments['path']`. `tested`: the member of it that is
    /// asked for.
    fn chain(&mut self, expr: &'e IdedExpr, tested: Option<&'e str>) -> Checked {
        let (mut base, mut members) = (expr, Vec::new());
        let root = loop {
            match &base.expr {
                Expr::Select(select) if !select.test => match &select.operand.expr {
                    Expr::Ident(root) if self.variable(root).is_none() => break Some((root, &select.field)),
                    _ => {
                        members.push((base, select.field.as_str()));
                        base = &select.operand;
                    }
                },
                Expr::Call(call) => match text_index(call) {
                    Some((of, name)) => {
                        members.push((base, name));
                        base = of;
                    }
                    None => break None,
                },
                _ => break None,
            }
        };
        members.reverse();
        if members.len() > DEPTH {
            return self.refuse(expr, "is nested too deeply", "write several rules");
        }
        let (mut node, mut kind) = match root {
            None => self.part(base)?,
            Some((root, field)) => match Name::find(root, field) {
                Some(name) if self.root.is_some_and(|only| only != root) => {
                    let write = format!("write one of {}", Name::below(self.root.unwrap_or_default()));
                    return self.refuse(base, format!("`{}` has no place here", name.text()), write);
                }
                Some(name) => {
                    if name == Name::McpArguments {
                        let path: Vec<&str> = members.iter().map(|(_, name)| *name).chain(tested).collect();
                        self.arguments.add(&path);
                    }
                    self.uses = self.uses.and(Names::of(&[name]));
                    (Node::Fact(name), name.kind())
                }
                None if Name::below(root).is_empty() => return self.unknown_name(base, root),
                None => {
                    let write = format!("write one of {}", Name::below(root));
                    return self.refuse(base, format!("there is no `{root}.{field}`"), write);
                }
            },
        };
        for (at, member) in members {
            kind = self.member_of(at, &kind, member)?;
            node = Node::Member(Box::new(node), member.into());
        }
        Some((node, kind))
    }

    /// The kind of a member.
    fn member_of(&mut self, at: &IdedExpr, of: &Kind, member: &str) -> Option<Kind> {
        let is_header = matches!(of, Kind::Map(of) if **of == Kind::Text);
        if is_header && member.bytes().any(|byte| byte.is_ascii_uppercase()) {
            let write = format!("write `{}`", member.to_ascii_lowercase());
            return self.refuse(at, "names of headers are in lower case here", write);
        }
        match of {
            Kind::Any => Some(Kind::Any),
            Kind::Map(member) => Some((**member).clone()),
            other => {
                let write = "read members of `caller.claims`, `request.headers` or `mcp.arguments`";
                self.refuse(at, format!("`{member}` is read from {other}, which has no members"), write)
            }
        }
    }

    fn call(&mut self, expr: &'e IdedExpr, call: &'e CallExpr) -> Checked {
        let name = call.func_name.as_str();
        match (name, call.args.as_slice()) {
            (operators::LOGICAL_AND | operators::LOGICAL_OR, [left, right]) => {
                let word = if name == operators::LOGICAL_AND { "`&&`" } else { "`||`" };
                let (left, right) = (self.truth(left, word), self.truth(right, word));
                let both = Box::new([left?, right?]);
                let node = if name == operators::LOGICAL_AND { Node::Both(both) } else { Node::Either(both) };
                Some((node, Kind::Bool))
            }
            (operators::LOGICAL_NOT, [of]) => Some((Node::Not(Box::new(self.truth(of, "`!`")?)), Kind::Bool)),
            (operators::NEGATE, [of]) => match self.part(of)? {
                (node, kind) if kind == Kind::Any || kind.is_number() => {
                    Some((Node::Negative(Box::new(node)), kind))
                }
                (_, kind) => self.refuse(expr, format!("`-` stands before {kind}"), "write a number"),
            },
            (operators::CONDITIONAL, [condition, yes, no]) => {
                let condition = self.truth(condition, "`?`");
                let (yes, no) = (self.part(yes), self.part(no));
                let (condition, (yes, kind), (no, other)) = (condition?, yes?, no?);
                Some((Node::Choice(Box::new([condition, yes, no])), kind.or(&other)))
            }
            (operators::EQUALS | operators::NOT_EQUALS, [_, _]) => {
                let (both, left, right) = self.two(call)?;
                if !left.meets(&right) {
                    let what = format!("compares {left} with {right}: they are never equal");
                    return self.refuse(expr, what, "compare values of one kind");
                }
                let equal = Node::Equal(both);
                let is_equal = name == operators::EQUALS;
                Some((if is_equal { equal } else { Node::Not(Box::new(equal)) }, Kind::Bool))
            }
            (operators::INDEX, [_, _]) => self.index(expr, call),
            (operators::IN, [_, _]) => self.membership(expr, call),
            (_, [_, _]) if let Some(comparison) = comparison(name) => {
                let (both, left, right) = self.two(call)?;
                let has_order = |kind: &Kind| {
                    matches!(kind, Kind::Any | Kind::Bool | Kind::Text | Kind::Time) || kind.is_number()
                };
                if !left.meets(&right) || !has_order(&left) || !has_order(&right) {
                    let what = format!("{left} and {right} have no order");
                    return self.refuse(expr, what, "compare two numbers, two texts or two times");
                }
                Some((Node::Compare(comparison, both), Kind::Bool))
            }
            (_, [_, _]) if let Some((operator, sign)) = arithmetic(name) => {
                let (both, left, right) = self.two(call)?;
                let kind = if left == Kind::Any { right.clone() } else { left.clone() };
                let fits = left.may_be(&right) || right == Kind::Any;
                let has_meaning = match &kind {
                    Kind::Any | Kind::Int => true,
                    Kind::Double => !matches!(operator, Arithmetic::Remainder),
                    Kind::Text => matches!(operator, Arithmetic::Add),
                    _ => false,
                };
                if !fits || !has_meaning {
                    let what = format!("`{sign}` has no meaning for {left} and {right}");
                    let write = "use two whole numbers, or two numbers with a point as in `1.0`; `+` also joins texts";
                    return self.refuse(expr, what, write);
                }
                Some((Node::Arithmetic(operator, both), kind))
            }
            _ => self.function(expr, call),
        }
    }

    fn index(&mut self, expr: &'e IdedExpr, call: &'e CallExpr) -> Checked {
        let (both, of, by) = self.two(call)?;
        let of_item = match of {
            Kind::List(of) if by.may_be(&Kind::Int) => Some(*of),
            Kind::Map(of) if by.may_be(&Kind::Text) => Some(*of),
            Kind::Any if by == Kind::Any || by == Kind::Int || by == Kind::Text => Some(Kind::Any),
            _ => None,
        };
        match of_item {
            Some(kind) => Some((Node::Index(both), kind)),
            None => self.refuse(
                expr,
                format!("`[…]` is not used this way with {by}"),
                "write a whole number after a list, or a text after a map",
            ),
        }
    }

    fn membership(&mut self, expr: &'e IdedExpr, call: &'e CallExpr) -> Checked {
        let (both, item, of) = self.two(call)?;
        let fits = match &of {
            Kind::Any => true,
            Kind::List(of) => item.meets(of),
            Kind::Map(_) => item.may_be(&Kind::Text),
            _ => false,
        };
        if !fits {
            let what = format!("{item} is never in {of}");
            return self.refuse(expr, what, "write `in` before a list of such values, or text before a map");
        }
        Some((Node::In(both), Kind::Bool))
    }

    fn two(&mut self, call: &'e CallExpr) -> Option<(Box<[Node; 2]>, Kind, Kind)> {
        let [left, right] = call.args.as_slice() else { return None };
        let (left, right) = (self.part(left), self.part(right));
        let ((left, left_kind), (right, right_kind)) = (left?, right?);
        Some((Box::new([left, right]), left_kind, right_kind))
    }

    fn truth(&mut self, expr: &'e IdedExpr, of: &str) -> Option<Node> {
        let (node, kind) = self.part(expr)?;
        self.require(expr, &kind, &Kind::Bool, of, "compare it with something")?;
        Some(node)
    }

    fn require(&mut self, expr: &IdedExpr, kind: &Kind, wanted: &Kind, of: &str, write: &str) -> Option<()> {
        match kind.may_be(wanted) {
            true => Some(()),
            false => self.refuse(expr, format!("{of} takes {wanted}, and this is {kind}"), write),
        }
    }

    fn refuse<T>(&mut self, expr: &IdedExpr, what: impl Into<String>, write: impl Into<String>) -> Option<T> {
        let offset = self.source.offset_for(expr.id).map_or(0, |(start, _)| start);
        let (line, column) = place(&self.source.source, offset);
        self.mistakes.push(Mistake { line, column, what: what.into(), write: write.into() });
        None
    }
}

/// Line and column, both from 1, of the character at the byte `offset`.
fn place(source: &str, offset: u32) -> (usize, usize) {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let before = source.char_indices().take_while(|(at, _)| *at < offset);
    before.fold((1, 1), |(line, column), (_, c)| if c == '\n' { (line + 1, 1) } else { (line, column + 1) })
}

/// `of['name']`, which is another spelling of `of.name`.
fn text_index(call: &CallExpr) -> Option<(&IdedExpr, &str)> {
    match call.args.as_slice() {
        [of, IdedExpr { expr: Expr::Literal(LiteralValue::String(name)), .. }]
            if call.func_name == operators::INDEX =>
        {
            Some((of, name.inner()))
        }
        _ => None,
    }
}

fn comparison(operator: &str) -> Option<Comparison> {
    Some(match operator {
        operators::GREATER => Comparison::Greater,
        operators::GREATER_EQUALS => Comparison::GreaterOrEqual,
        operators::LESS => Comparison::Less,
        operators::LESS_EQUALS => Comparison::LessOrEqual,
        _ => return None,
    })
}

fn arithmetic(operator: &str) -> Option<(Arithmetic, char)> {
    Some(match operator {
        operators::ADD => (Arithmetic::Add, '+'),
        operators::DIVIDE => (Arithmetic::Divide, '/'),
        operators::MODULO => (Arithmetic::Remainder, '%'),
        operators::MULTIPLY => (Arithmetic::Multiply, '*'),
        operators::SUBSTRACT => (Arithmetic::Subtract, '-'),
        _ => return None,
    })
}
