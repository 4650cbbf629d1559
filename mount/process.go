package mount

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// process tells of the process that a request is from.
type process struct {
	id    uint32 // of the process (thread group), 0 where it can't be known
	dying bool   // a signal is ending it, and this closes its files
}

// processOf looks up the process of a thread: what a request's header names.
// The kernel says 0 for a process in a pid namespace that can't be seen from
// the mount's; it counts as living, as does one that may not be looked at.
func processOf(thread uint32) process {
	if thread == 0 {
		return process{}
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	if err != nil {
		return process{}
	}
	id, err := strconv.ParseUint(statusField(text, "Tgid"), 10, 32)
	if err != nil {
		return process{}
	}
	p := process{id: uint32(id)}
	// A process that exits gives up its memory before it closes its files. Only
	// then may its exit code be read: as long as one is in the middle of an
	// execve(2), which closes files too, /proc/PID/stat can't be read, and
	// execve would wait for the answer that the handler reads it for.
	if statusField(text, "VmSize") == "" {
		p.dying = exitsBySignal(thread)
	}
	return p
}

// killed reports whether a signal is ending the process of a thread, which may wait
// for an answer: the kernel then makes it SIGKILL for each of its threads.
func killed(thread uint32) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	if errors.Is(err, fs.ErrNotExist) {
		return thread != 0 // it can't be seen, or is gone
	}
	pending, err := strconv.ParseUint(statusField(text, "SigPnd"), 16, 64)
	return err == nil && pending>>(unix.SIGKILL-1)&1 != 0
}

// statusField returns a field of /proc/PID/status, empty where there is none.
func statusField(text []byte, name string) string {
	_, rest, ok := bytes.Cut(text, []byte("\n"+name+":"))
	if !ok {
		return ""
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	return string(bytes.TrimSpace(line))
}

// exitCodeField is the place of exit_code in /proc/PID/stat counted from the
// field behind the command's name; see proc_pid_stat(5), field 52.
const exitCodeField = 52 - 3

// exitsBySignal reports whether a thread that exits does so by a signal.
func exitsBySignal(thread uint32) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", thread))
	if err != nil {
		return false
	}
	// The command's name may contain anything, so count from its last ')'.
	i := bytes.LastIndexByte(text, ')')
	if i < 0 {
		return false
	}
	fields := bytes.Fields(text[i+1:])
	if len(fields) <= exitCodeField {
		return false
	}
	code, err := strconv.Atoi(string(fields[exitCodeField]))
	return err == nil && code&0x7f != 0
}
