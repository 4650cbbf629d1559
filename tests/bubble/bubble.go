// Package bubble passes the virtual time of testing/synctest's bubbles. Nothing here waits for real time.
package bubble

import (
	"testing/synctest"
	"time"
)

// Pass lets d go by and returns when all that it set off has come to rest:
// every other goroutine of the bubble waits for something of the bubble.
// One goroutine of a bubble may do so at a time. Outside of a bubble it
// panics.
func Pass(d time.Duration) {
	Spend(d)
	synctest.Wait()
}

// Spend is for what a test plays, such as a disk, a peer or a client: it takes
// d of the bubble's time. Any number of goroutines may do so at once.
func Spend(d time.Duration) { time.Sleep(d) }
