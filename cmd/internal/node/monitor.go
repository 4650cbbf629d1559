package node

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

// monitorSlack is by how much the monitor of Go's runtime may be late. As long as
// any goroutine runs that thread sleeps for 20 us at a time, to find processors
// whose thread is in a long system call; where they were idle in between it
// begins anew. A node that waits for its disk and for others a thousand times a
// second never lets it rest: its wake-ups were a sixth of what a durable put on
// three nodes takes, and a third of what creating a file in a mount does. Nothing
// waits for it: there are more processors than cores (tuneRuntime), and a runtime
// that had little to do lets 10 ms pass.
const monitorSlack = time.Millisecond

// slackenMonitor gives the monitor of this process monitorSlack. That takes
// CAP_SYS_NICE, else the error is fs.ErrPermission. See timerslack_ns in proc(5).
func slackenMonitor() error {
	thread, err := monitorThread()
	if err != nil {
		return err
	}
	return os.WriteFile("/proc/"+thread+"/timerslack_ns", strconv.AppendInt(nil, monitorSlack.Nanoseconds(), 10), 0)
}

// monitorThread returns the id of the monitor: the first thread that the runtime
// starts. Linux lists threads in the order in which they were started.
func monitorThread() (string, error) {
	tasks, err := os.Open("/proc/self/task")
	if err != nil {
		return "", err
	}
	defer tasks.Close()
	threads, err := tasks.Readdirnames(2)
	if err != nil {
		return "", err
	}
	if len(threads) < 2 {
		return "", fmt.Errorf("one thread in %s", tasks.Name())
	}
	return threads[1], nil
}
