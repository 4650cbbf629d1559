package mount

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// How long the kernel may believe an answer: while a watch tells what others
// change, and while none does. A minute rather than for ever bounds what a
// notice that crossed an answer on its way can do.
const (
	validWatched   = time.Minute
	validUnwatched = time.Second
)

// Options says how a volume is mounted. The zero Options is what ParseOptions
// makes of "" for a user that is not root.
type Options struct {
	Name   string // what df and mount show as the source; "gearsfs" if empty
	Node   string // the address that Locate answers: where commands reach this volume
	Volume string // the volume's name as Locate answers it

	ReadOnly   bool
	AllowOther bool // other users than the mounting one may use it
	NonEmpty   bool // mount over a directory that has entries
	Debug      bool // log each request

	// AttrTimeout and EntryTimeout bound how long the kernel believes
	// attributes and names without asking; 0 leaves it to the mount, and less is
	// never: what others change is seen at once.
	AttrTimeout, EntryTimeout time.Duration

	// Timeout is how long calls wait for a node that does not answer, until they
	// fail: with ETIMEDOUT where they have changed nothing, else with EIO. It is
	// for who makes the Manager; see GiveUp.
	Timeout time.Duration

	// Succession is what lets another process take the mount over; may be nil.
	Succession *Succession
	// Supervisor is the process that keeps the mount; 0 for none.
	Supervisor int
	// Attached, where not nil, is given the connection of a new mount before
	// anything can wait for it. The file stays the mount's.
	Attached func(conn *os.File) error

	// Notify, where not nil, sends a notice to the kernel from a process that
	// stays when this one dies, and waits until it is sent; or it returns
	// ErrNoSupervisor.
	Notify func(notice []byte) error

	// Several, where not nil, says whether each change of the volume waits for
	// several nodes, now. Then, and with a Succession always, a mount holds what
	// is written to a file until its close or fsync, for HeldFor at the most.
	Several func() bool
	HeldFor time.Duration // 0 is 100 ms with several nodes, else 20 ms

	// Kernel are flags of mount(8) that change what the kernel lets programs
	// do: exec, suid, dev and their opposites, sync, dirsync, noatime, ...
	Kernel []string
}

// kernelFlags are the options that the kernel understands by itself.
var kernelFlags = []string{
	"exec", "noexec", "suid", "nosuid", "dev", "nodev",
	"sync", "async", "dirsync", "atime", "noatime", "relatime",
}

// ignoredOptions are what fstab(5) lines carry for others than the mount.
var ignoredOptions = []string{"defaults", "auto", "noauto", "user", "nouser", "users", "nofail", "_netdev"}

// DefaultOptions returns the options of a mount that says nothing: root's are
// for all users, as a disk is.
func DefaultOptions() Options {
	return Options{AllowOther: os.Geteuid() == 0, Timeout: timeoutDefault}
}

const (
	timeoutDefault = 30 * time.Second
	// noticed is how long it takes until a node that does not answer counts as
	// lost, and until that is looked at.
	noticed = 4 * time.Second
)

// GiveUp is dgm.RemoteOptions.GiveUp for the Manager of a mount: from a node's
// last sign of life until calls fail that wait for it Timeout passes.
func (o *Options) GiveUp() time.Duration { return max(o.Timeout-noticed, o.Timeout/4) }

// ParseOptions reads the argument of -o: names and name=value pairs separated
// by commas. An option that is not known is an error that names it.
func ParseOptions(list string) (Options, error) {
	o := DefaultOptions()
	for field := range strings.SplitSeq(list, ",") {
		if field == "" {
			continue
		}
		if err := o.set(field); err != nil {
			return Options{}, err
		}
	}
	return o, nil
}

func (o *Options) set(field string) error {
	name, value, hasValue := strings.Cut(field, "=")
	var err error
	switch {
	case name == "fsname" && value != "":
		o.Name = value
		return nil
	case name == "attr_timeout" && hasValue:
		o.AttrTimeout, err = parseBelief(value)
	case name == "entry_timeout" && hasValue:
		o.EntryTimeout, err = parseBelief(value)
	case name == "timeout" && hasValue:
		if o.Timeout, err = parseTimeout(value); err == nil && o.Timeout < time.Second {
			err = fmt.Errorf("must be at least a second")
		}
	case hasValue:
		err = fmt.Errorf("unknown")
	case name == "ro":
		o.ReadOnly = true
	case name == "rw":
		o.ReadOnly = false
	case name == "allow_other":
		o.AllowOther = true
	case name == "noallow_other":
		o.AllowOther = false
	case name == "nonempty":
		o.NonEmpty = true
	case name == "debug":
		o.Debug = true
	case slices.Contains(kernelFlags, name):
		o.Kernel = append(o.Kernel, name)
	case slices.Contains(ignoredOptions, name):
	default:
		err = fmt.Errorf("unknown")
	}
	if err != nil {
		return fmt.Errorf("mount option %q: %w; known are ro, rw, allow_other, noallow_other, nonempty, debug, "+
			"fsname=NAME, attr_timeout=SECONDS, entry_timeout=SECONDS, timeout=SECONDS, %s", field, err, strings.Join(kernelFlags, ", "))
	}
	return nil
}

// parseBelief reads a timeout for what the kernel believes, of which 0 is never.
func parseBelief(s string) (time.Duration, error) {
	d, err := parseTimeout(s)
	if d == 0 && err == nil {
		return -1, nil
	}
	return d, err
}

// parseTimeout reads seconds, as other file systems' timeouts, or a duration.
func parseTimeout(s string) (time.Duration, error) {
	if seconds, err := strconv.ParseFloat(s, 64); err == nil {
		if seconds < 0 || seconds > 1e6 {
			return 0, fmt.Errorf("must be 0 to 1000000 seconds")
		}
		return time.Duration(seconds * float64(time.Second)), nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("not a number of seconds")
	}
	return d, nil
}
