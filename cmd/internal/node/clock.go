//go:build !faultclock

package node

import "time"

// clock is the node's clock; nil is the machine's. Built with the tag
// faultclock, which only the tests do, it is one that can be set wrong.
func clock() func() time.Time { return nil }
