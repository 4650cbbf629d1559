//go:build faultclock

package node

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestSteppedClock(t *testing.T) {
	for _, by := range []time.Duration{time.Hour, -time.Hour} {
		before := time.Now()
		after := stepped(time.Now(), by)
		assert.InDelta(t, float64(by), float64(after.Round(0).Sub(before.Round(0))), float64(time.Minute), "the time of day")
		assert.InDelta(t, 0, float64(after.Sub(before)), float64(time.Minute), "the time that has passed")
	}
}
