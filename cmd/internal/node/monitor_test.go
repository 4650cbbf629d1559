package node

import (
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var voluntary = regexp.MustCompile(`(?m)^voluntary_ctxt_switches:\s+(\d+)$`)

// TestMonitor: the thread that may be late is the one that wakes again and again
// while a goroutine runs, and no other.
func TestMonitor(t *testing.T) {
	thread, err := monitorThread()
	require.NoError(t, err)
	sleeps := func() int {
		status, err := os.ReadFile("/proc/self/task/" + thread + "/status")
		require.NoError(t, err)
		n, err := strconv.Atoi(string(voluntary.FindSubmatch(status)[1]))
		require.NoError(t, err)
		return n
	}
	for before := sleeps(); sleeps() < before+10; { // keeps one processor busy
	}

	err = slackenMonitor()
	if os.Geteuid() != 0 {
		require.ErrorIs(t, err, fs.ErrPermission)
		return
	}
	require.NoError(t, err)
	slack := func(thread string) string {
		b, err := os.ReadFile("/proc/" + thread + "/timerslack_ns")
		require.NoError(t, err)
		return strings.TrimSpace(string(b))
	}
	require.Equal(t, "1000000", slack(thread))
	require.NotEqual(t, "1000000", slack(strconv.Itoa(os.Getpid())))
}
