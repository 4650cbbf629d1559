package node

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// The room that the heap has between two collections: twice what is live of a small
// one, so that puts wait seldom for the collector; and as much again as is live of a
// larger one, or heapRoom. Without that bound a mount of three nodes that is written to
// at random had 340 MiB, of which 70 were live.
const (
	gcPercentMost  = 200
	gcPercentLeast = 100
	heapRoom       = 64 << 20
	gcPercentStep  = 20 // to set it stops all goroutines for a moment
)

// gcPercent is GOGC for so many live bytes.
func gcPercent(live uint64) int {
	percent := int(min(heapRoom*100/max(live, 1), gcPercentMost))
	return max(percent/gcPercentStep*gcPercentStep, gcPercentLeast)
}

// tuneCollector has the collector run as gcPercent says, from now on.
var tuneCollector = sync.OnceFunc(func() {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	percent := gcPercentMost
	debug.SetGCPercent(percent)
	var collected func(struct{})
	watch := func() { runtime.AddCleanup(new([16]byte), collected, struct{}{}) }
	collected = func(struct{}) { // after each collection
		metrics.Read(live)
		if next := gcPercent(live[0].Value.Uint64()); next != percent {
			percent = next
			debug.SetGCPercent(percent)
		}
		watch()
	}
	watch()
})
