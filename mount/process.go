package mount

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// processOf returns the process (thread group) that the thread tid is part of,
// or 0 where it can't be known: the kernel says 0 for a process in a pid
// namespace that can't be seen from the mount's.
func processOf(tid uint32) uint32 {
	if tid == 0 {
		return 0
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0
	}
	_, rest, ok := bytes.Cut(text, []byte("\nTgid:"))
	if !ok {
		return 0
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	tgid, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 10, 32)
	if err != nil {
		return 0
	}
	return uint32(tgid)
}

// exitCodeField is the place of exit_code in /proc/PID/stat counted from the
// field behind the command's name; see proc_pid_stat(5), field 52.
const exitCodeField = 52 - 3

// dyingBySignal reports whether the process of the thread tid is being ended
// by a signal, as the files that it has open are closed. A process whose exit
// code can't be read is taken for a living one.
func dyingBySignal(tid uint32) bool {
	if tid == 0 {
		return false
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", tid))
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
