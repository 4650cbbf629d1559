package node

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestGCPercent: a small heap has twice as much room as is live, a large one as much,
// and what lies between never has less room than a smaller one.
func TestGCPercent(t *testing.T) {
	require.Equal(t, gcPercentMost, gcPercent(0))
	require.Equal(t, gcPercentMost, gcPercent(heapRoom/2))
	require.Equal(t, gcPercentLeast, gcPercent(heapRoom))
	require.Equal(t, gcPercentLeast, gcPercent(1<<40))
	for live := uint64(1 << 20); live < 4*heapRoom; live += 1 << 20 {
		percent := gcPercent(live)
		require.LessOrEqual(t, live*uint64(percent)/100, max(heapRoom, live))
		require.LessOrEqual(t, percent, gcPercent(live-1<<20))
	}
}

// TestTuneCollector: each collection sets what the next one goes by.
func TestTuneCollector(t *testing.T) {
	now := func() int {
		percent := debug.SetGCPercent(1 << 10)
		debug.SetGCPercent(percent)
		return percent
	}
	tuneCollector()
	large := make([]byte, 2*heapRoom)
	require.Eventually(t, func() bool { runtime.GC(); return now() == gcPercentLeast }, time.Minute, time.Millisecond)
	runtime.KeepAlive(large)
	large = nil
	require.Eventually(t, func() bool { runtime.GC(); return now() == gcPercentMost }, time.Minute, time.Millisecond)
}
