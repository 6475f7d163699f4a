# Completion of panzer for bash; made by `cargo run --example render`.
_panzer() {
    local cur=${COMP_WORDS[COMP_CWORD]} i word
    if [[ ${COMP_WORDS[1]} == ctl && COMP_CWORD -gt 1 ]]; then
        COMPREPLY=($(compgen -W 'status top ready reload restart scale stop signal --pid --pid-file --control --json --min --wait --help' -- "$cur"))
        return
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case $word in
            --) ((i++)); break ;;
            -n|--workers|-d|--dir|-u|--user|--umask|--env-dir|-l|--listen|--listen-env|--backlog|--share-ports|--balance|--ready|--ready-timeout|--restart|--backoff|--stagger|--crash-limit|--fatal-exit|--stop|--stop-delay|--reload-stop|--reload-tries|--surge|--kill-old-delay|--max-age|--max-rss|--watchdog|--linger|--on|--pdeathsig|--ok-exit|--control|--metrics|--pid-file|--status-file|--config|--on-exit|--log-format) ((i++)) ;;
            -*) ;;
            *) break ;;
        esac
    done
    if ((i < COMP_CWORD)); then
        _command_offset "$i" 2>/dev/null || COMPREPLY=($(compgen -f -- "$cur"))
    elif ((i > COMP_CWORD)); then
        COMPREPLY=($(compgen -f -- "$cur"))
    elif [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W '-n --workers -d --dir -u --user --umask --env-dir -l --listen --listen-env --backlog --share-ports --balance --ready --ready-timeout --restart --backoff --stagger --crash-limit --fatal-exit --stop --stop-delay --reload-stop --reload-tries --surge --kill-old-delay --max-age --max-rss --watchdog --linger --on --no-group --pdeathsig --ok-exit --control --metrics --pid-file --status-file --config --on-exit -q --quiet -v --verbose --log-format --check -h --help -V --version' -- "$cur"))
    else
        COMPREPLY=($(compgen -W ctl -- "$cur") $(compgen -c -- "$cur"))
    fi
}
complete -F _panzer panzer
