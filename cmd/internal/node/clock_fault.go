//go:build faultclock

package node

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// faultClockEnv names the file whose first 8 bytes, a little-endian int64, are
// the nanoseconds that the clock is wrong by. It may change at any time.
const faultClockEnv = "GEARSFSD_FAULTCLOCK"

// clock is the machine's, set wrong as the file says that the environment
// names. Tests run a gearsfsd with it; it is not in the normal build.
func clock() func() time.Time {
	path := os.Getenv(faultClockEnv)
	if path == "" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		panic(fmt.Sprintf("%s: %v", faultClockEnv, err))
	}
	defer f.Close()
	offset, err := unix.Mmap(int(f.Fd()), 0, 8, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		panic(fmt.Sprintf("%s: map %s: %v", faultClockEnv, path, err))
	}
	return func() time.Time {
		return stepped(time.Now(), time.Duration(binary.LittleEndian.Uint64(offset)))
	}
}

// stepped is now as it is after the machine's clock was set: another time of
// day, and the same time since the process began. No method of Time does that,
// since its monotonic reading moves with Add.
func stepped(now time.Time, by time.Duration) time.Time {
	type layout struct { // of time.Time
		wall uint64
		ext  int64
		loc  *time.Location
	}
	const hasMonotonic = 1 << 63
	set := now.Add(by)
	from, to := (*layout)(unsafe.Pointer(&now)), (*layout)(unsafe.Pointer(&set))
	if from.wall&to.wall&hasMonotonic != 0 {
		to.ext = from.ext
	}
	return set
}
