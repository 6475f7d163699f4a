//! Renders what comes from the option table: the man page, the shell completions and the README's table of options.
//!
//! `cargo run --example render` writes them; with `--check` it only says which one is out of date.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use panzer::cli::help::flags;
use panzer::cli::options::{OPTIONS, Takes};
use panzer::ctl::commands::{WORDS, Word};

const BEGIN: &str = "<!-- options: made by `cargo run --example render` -->\n";
const END: &str = "<!-- options end -->\n";

fn main() -> ExitCode {
    let check = std::env::args().nth(1).as_deref() == Some("--check");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap_or_default();
    let rendered = [
        ("docs/panzer.1", man()),
        ("completions/panzer.bash", bash()),
        ("completions/_panzer", zsh()),
        ("completions/panzer.fish", fish()),
        ("README.md", with_table(&readme)),
    ];
    let mut status = ExitCode::SUCCESS;
    for (name, text) in rendered {
        let path = root.join(name);
        if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
            continue;
        }
        if check {
            eprintln!("{name} is out of date: run cargo run --example render");
            status = ExitCode::FAILURE;
        } else if let Err(error) = std::fs::write(&path, text) {
            eprintln!("cannot write {name}: {error}");
            status = ExitCode::FAILURE;
        } else {
            println!("wrote {name}");
        }
    }
    status
}

/// The README with a fresh table between its two marks.
fn with_table(readme: &str) -> String {
    let Some((before, rest)) = readme.split_once(BEGIN) else { return readme.to_owned() };
    let Some((_, after)) = rest.split_once(END) else { return readme.to_owned() };
    let mut table = String::from("| option | what it does | default |\n| --- | --- | --- |\n");
    for option in OPTIONS {
        let flags = flags(option).trim_start().replace('|', "\\|");
        let _ = writeln!(table, "| `{flags}` | {} | {} |", option.summary.replace('|', "\\|"), option.default);
    }
    format!("{before}{BEGIN}{table}{END}{after}")
}

/// Characters that roff would take for its own.
fn roff(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

fn man() -> String {
    let version = panzer::config::VERSION;
    let mut out = format!(
        ".TH PANZER 1 \"\" \"panzer {version}\" \"User Commands\"\n.SH NAME\npanzer \\- a correct PID 1 that runs N processes of \
         any server\n.SH SYNOPSIS\n.B panzer\n[\\fIOPTIONS\\fR] [\\-\\-] \\fICOMMAND\\fR [\\fIARGUMENT\\fR]...\n\
         .SH DESCRIPTION\nWithout \\fB\\-n\\fR panzer runs COMMAND as a correct init: it forwards every signal, reaps \
         every orphan, exits as COMMAND does, and clears up what COMMAND leaves behind. With \\fB\\-n\\fR it keeps N \
         processes of COMMAND alive. It works as PID 1 of a container and as an ordinary process.\n"
    );
    let mut group = "";
    for option in OPTIONS {
        if option.group != group {
            group = option.group;
            let _ = writeln!(out, ".SH \"{} OPTIONS\"", group.to_ascii_uppercase());
        }
        let _ = write!(out, ".TP\n.B {}\n{}.", roff(flags(option).trim_start()), roff(option.summary));
        if !option.default.is_empty() {
            let _ = write!(out, " Default: {}.", roff(option.default));
        }
        out.push('\n');
    }
    out.push_str(
        ".SH SIGNALS\nWithout \\fB\\-n\\fR every signal is forwarded to the process group of COMMAND; TSTP, TTIN and \
         TTOU stop it. With \\fB\\-n\\fR TERM and INT run the stop schedule on all workers, a second INT and QUIT kill \
         them, HUP and USR1 reload, TTIN and TTOU start one more and stop one, USR2 is reserved, and the others are forwarded. \\fB\\-\\-on\\fR changes that.\n\
         .SH \"EXIT STATUS\"\nWithout \\fB\\-n\\fR that of COMMAND, 128+n when signal n killed it. With \\fB\\-n\\fR 0 \
         after a stop, 137 when something had to be killed. 125 when panzer itself refuses, 126 when COMMAND cannot be \
         executed, 127 when it is not found.\n.SH ENVIRONMENT\nEach long option also reads from a variable:\n",
    );
    for option in OPTIONS {
        if let Some(variable) = option.variable() {
            let _ = write!(out, ".TP\n.B {variable}\nas \\fB{}\\fR\n", roff(&format!("--{}", option.long)));
        }
    }
    out.push_str(
        ".SH \"PANZER CTL\"\n.B panzer ctl\n[\\fIOPTIONS\\fR] \\fICOMMAND\\fR asks a panzer that runs with \\fB\\-n\\fR; so does this \
         file under the name \\fBpanzerctl\\fR. It exits with 0, with 1 when panzer says no, with 125 when it cannot be asked.\n",
    );
    for word in WORDS.map(Word::read) {
        let of = if word.command.is_empty() { String::new() } else { format!("{}: ", word.command) };
        let _ = write!(out, ".TP\n.B {} {}\n{of}{}.\n", roff(word.name), roff(word.takes), roff(word.summary));
    }
    out.push_str(".SH \"SEE ALSO\"\n.BR signal (7),\n.BR sd_listen_fds (3),\n.BR tini (1)\n");
    out
}

fn bash() -> String {
    let mut words = Vec::new();
    let mut valued = Vec::new();
    for option in OPTIONS {
        let names = option.short.map(|letter| format!("-{letter}")).into_iter().chain([format!("--{}", option.long)]);
        for name in names {
            if option.takes.value_name().is_some() {
                valued.push(name.clone());
            }
            words.push(name);
        }
    }
    let ctl: Vec<&str> = WORDS.map(|row| Word::read(row).name).to_vec();
    format!(
        "# Completion of panzer for bash; made by `cargo run --example render`.\n_panzer() {{\n\
         \x20   local cur=${{COMP_WORDS[COMP_CWORD]}} i word\n\
         \x20   if [[ ${{COMP_WORDS[1]}} == ctl && COMP_CWORD -gt 1 ]]; then\n\
         \x20       COMPREPLY=($(compgen -W '{}' -- \"$cur\"))\n\
         \x20       return\n\
         \x20   fi\n\
         \x20   for ((i = 1; i < COMP_CWORD; i++)); do\n\
         \x20       word=${{COMP_WORDS[i]}}\n\
         \x20       case $word in\n\
         \x20           --) ((i++)); break ;;\n\
         \x20           {}) ((i++)) ;;\n\
         \x20           -*) ;;\n\
         \x20           *) break ;;\n\
         \x20       esac\n\
         \x20   done\n\
         \x20   if ((i < COMP_CWORD)); then\n\
         \x20       _command_offset \"$i\" 2>/dev/null || COMPREPLY=($(compgen -f -- \"$cur\"))\n\
         \x20   elif ((i > COMP_CWORD)); then\n\
         \x20       COMPREPLY=($(compgen -f -- \"$cur\"))\n\
         \x20   elif [[ $cur == -* ]]; then\n\
         \x20       COMPREPLY=($(compgen -W '{}' -- \"$cur\"))\n\
         \x20   else\n\
         \x20       COMPREPLY=($(compgen -W ctl -- \"$cur\") $(compgen -c -- \"$cur\"))\n\
         \x20   fi\n\
         }}\ncomplete -F _panzer panzer\n",
        ctl.join(" "),
        valued.join(" | ").replace(" | ", "|"),
        words.join(" ")
    )
}

fn zsh() -> String {
    let mut out = String::from(
        "#compdef panzer\n# Completion of panzer for zsh; made by `cargo run --example render`.\n\
         if [[ $words[2] == ctl ]]; then\n  _values -s ' ' 'panzer ctl' \\\n",
    );
    for word in WORDS.map(Word::read) {
        let _ = writeln!(out, "    '{}[{}]' \\", word.name, word.summary.replace('\'', "'\\''"));
    }
    out.push_str("    && return\nfi\n_arguments -S \\\n");
    for option in OPTIONS {
        let about = option.summary.replace('\'', "'\\''").replace('[', "\\[").replace(']', "\\]").replace(':', "\\:");
        let value = option
            .takes
            .value_name()
            .map_or(String::new(), |name| format!(":{}:_files", name.replace([':', '[', ']'], " ")));
        let repeat = if matches!(option.takes, Takes::Many(..)) { "*" } else { "" };
        if let Some(letter) = option.short {
            let _ = writeln!(out, "  '{repeat}-{letter}[{about}]{value}' \\");
        }
        let _ = writeln!(out, "  '{repeat}--{}[{about}]{value}' \\", option.long);
    }
    out.push_str("  '(-)*::command:_normal'\n");
    out
}

fn fish() -> String {
    let mut out = String::from("# Completion of panzer for fish; made by `cargo run --example render`.\n");
    for option in OPTIONS {
        let short = option.short.map_or(String::new(), |letter| format!(" -s {letter}"));
        let value = if option.takes.value_name().is_some() { " -r" } else { "" };
        let about = option.summary.replace('\\', "\\\\").replace('\'', "\\'");
        let _ = writeln!(out, "complete -c panzer{short} -l {}{value} -d '{about}'", option.long);
    }
    out.push_str("complete -c panzer -n __fish_is_first_arg -a '(__fish_complete_command)'\n");
    out.push_str("complete -c panzer -n __fish_is_first_arg -a ctl -d 'ask a panzer that runs'\n");
    for word in WORDS.map(Word::read) {
        let about = word.summary.replace('\'', "\\'");
        let _ = writeln!(out, "complete -c panzer -n '__fish_seen_subcommand_from ctl' -a {} -d '{about}'", word.name);
    }
    out
}
