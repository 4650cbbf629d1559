package replica

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// Who leaves and does the loop's work says so before it writes the log; who has
// nothing to do does not. (A timer may wake the loop in the moment between.)
func TestLeaveYielding(t *testing.T) {
	log := &memLog{}
	f := openTest(t, log, new(memMachine), quickly)
	require.NoError(t, f.put("first", true).err)
	const puts = 100
	yields := 0
	for i := range puts {
		asleepNow(f.Group)
		f.Enter()
		f.LeaveYielding(func() { t.Error("yielded for nothing") })
		asleepNow(f.Group)
		last := log.Last()
		f.Enter()
		out := f.start(fmt.Sprint(i), true)
		f.LeaveYielding(func() {
			yields++
			if log.Last() != last {
				t.Error("yielded too late")
			}
		})
		require.NoError(t, (<-out).err)
	}
	require.Greater(t, yields, puts*9/10)
	require.NoError(t, f.Close())
}
