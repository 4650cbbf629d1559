package replica

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// Who leaves and does the loop's work says so before it waits for the disk: with a
// lone proposal when the log is written, with several before that. Who has nothing
// to do does not. (A timer may wake the loop in the moment between.)
func TestLeaveYielding(t *testing.T) {
	for _, test := range []struct {
		name        string
		n           int // proposals of each visit
		writtenThen bool
	}{{"lone", 1, true}, {"several", lonely + 1, false}} {
		t.Run(test.name, func(t *testing.T) {
			log := &memLog{}
			f := openTest(t, log, new(memMachine), quickly)
			require.NoError(t, f.put("first", true).err)
			const visits = 100
			yields := 0
			for range visits {
				asleepNow(f.Group)
				f.Enter()
				f.LeaveYielding(func() { t.Error("yielded for nothing") })
				asleepNow(f.Group)
				last := log.Last()
				f.Enter()
				var outs []<-chan outcome
				for i := range test.n {
					outs = append(outs, f.start(fmt.Sprint(i), true))
				}
				f.LeaveYielding(func() {
					yields++
					log.mu.Lock()
					defer log.mu.Unlock()
					if log.synced > last {
						t.Error("yielded behind the sync")
					}
					if written := log.last() > last; written != test.writtenThen {
						t.Errorf("yielded when the log was written: %v", written)
					}
				})
				for _, out := range outs {
					require.NoError(t, (<-out).err)
				}
			}
			require.Greater(t, yields, visits*9/10)
			require.NoError(t, f.Close())
		})
	}
}
