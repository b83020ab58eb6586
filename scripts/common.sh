# Read by the launchers beside it: what they share. It needs nothing from outside, and does nothing by itself.

PYTHON=${PYTHON:-python}

# fail MESSAGE: one line on standard error, and exit code 2, like every mistake at gen-unlearn's door.
fail() {
    echo "error: $1" >&2
    exit 2
}

# help_of FILE: print the comment that opens a script.
help_of() {
    sed -n -e '1d' -e '/^#/!q' -e 's/^# \{0,1\}//p' "$1"
}

# require_verb FILE ARGUMENT...: show the help and stop unless there is something to do.
require_verb() {
    local file=$1
    shift
    case ${1:-} in
        '')
            help_of "$file" >&2
            fail "expected what gen-unlearn is to do, such as: train --config FILE --out DIR; got nothing"
            ;;
        -h | --help)
            help_of "$file"
            exit 0
            ;;
    esac
}

# require_number NAME VALUE LEAST: stop unless the value is a whole number from LEAST up.
require_number() {
    [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] && [ "$2" -ge "$3" ] || fail "expected $1 from $3 up, got '$2'"
}

# Set PROCESSES, one for each GPU unless the caller said how many, and OMP_NUM_THREADS, a fair share of the cores.
share_out_this_host() {
    local cores
    command -v "$PYTHON" > /dev/null || fail "expected a Python with gen_unlearn in PYTHON, got '$PYTHON'"
    if [ -z "${PROCESSES:-}" ]; then
        PROCESSES=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())') \
            || fail "expected a Python with gen_unlearn in PYTHON, got '$PYTHON', which has no torch"
        [ "$PROCESSES" -gt 0 ] || fail "no GPU is visible; set PROCESSES to run so many on the CPU"
    fi
    require_number PROCESSES "$PROCESSES" 1
    # Those that this process may use, where there is nproc, which takes OMP_NUM_THREADS for a limit, too.
    cores=$(nproc 2> /dev/null || getconf _NPROCESSORS_ONLN)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > PROCESSES ? cores / PROCESSES : 1))}
    require_number OMP_NUM_THREADS "$OMP_NUM_THREADS" 1
    # How long processes that were asked to stop may take to write a resume point; torchrun's 30 seconds are few.
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${STOP_SECONDS:-120}
    require_number STOP_SECONDS "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT" 1
}
