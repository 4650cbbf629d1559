package gearsfs

import (
	"cmp"
	"strconv"
	"strings"
	"time"
)

// Record is one DataGear.
type Record struct {
	Key        Key // the stream it came from
	Place      Place
	Data       []byte
	Type       string    // a name for what Data is; may be empty
	Time       time.Time // log time of the put
	Deliveries uint32    // how often it was handed out, this time included
	Receipt    *Receipt  // of a lease; nil where nothing is leased
	Deadline   time.Time // of the lease, log time; zero where it has none
}

// NewRecord is what is put.
type NewRecord struct {
	Data []byte // at most RecordBytesMax; not kept after the call returns
	Type string // at most KeyBytesMax bytes
	// ID, where it is not empty, has the record put once within the stream's
	// window of ids; at most KeyBytesMax bytes.
	ID string
}

// File says which file an operation is about: by Ino where that is not 0, else
// by Path, an absolute path in the volume whose symbolic links are followed.
type File struct {
	Ino  Ino
	Path string
}

// At names a file by its path in the volume; a missing leading slash is added.
func At(path string) File {
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	return File{Path: path}
}

// ByIno names a file by its inode number.
func ByIno(ino Ino) File { return File{Ino: ino} }

// Caller is who asks: permissions are checked and new files are owned by it.
type Caller struct {
	UID  uint32
	GIDs []uint32 // the first is the primary group
	// Checked says that whoever calls has checked permissions already, as
	// the kernel does for a mount. Never taken from a socket.
	Checked bool
}

// Root is the caller that may do everything.
var Root = Caller{GIDs: []uint32{0}}

// Nobody is the caller behind a connection that proves no identity.
var Nobody = Caller{UID: 65534, GIDs: []uint32{65534}}

// Attr is what stat(2) shows of an inode. Times are log time unless set.
type Attr struct {
	Ino     Ino
	Mode    uint32 // type and permission bits as in stat(2)
	Nlink   uint32
	UID     uint32
	GID     uint32
	Rdev    uint32
	Size    uint64 // bytes between Head and the tail of the data stream
	Blocks  uint64 // of 512 bytes
	Head    Pos    // where the data stream begins: offset 0 of a file opened now
	Version uint64 // of the data stream: rises with every change, by one with each write or truncation
	Taken   bool   // records were taken from the data stream
	Atime   time.Time
	Mtime   time.Time
	Ctime   time.Time
}

// Limits bound a stream; zero is "no limit". A put into a full stream waits.
type Limits struct {
	Records uint64
	Bytes   uint64
}

// StreamInfo describes one stream of a file at one moment.
type StreamInfo struct {
	Key     Key
	Records uint64 // ready to be taken
	Leased  uint64
	Bytes   uint64 // of the records that are ready or leased
	Head    Place  // of the first record left; of the next one where none is
	Tail    Place  // of the next record to be put
	Version uint64
	Waiting uint32 // takes and peeks that wait
	Sealed  bool
	Limits  Limits

	Delayed   uint64 // records that wait for their time
	Discarded uint64 // records that went by age or for newer ones
	Settings  Settings

	// Lost are the last records that went without having been acknowledged, in
	// runs of seqs, newest last; of those up to LostBefore that are not among
	// them nobody knows.
	Lost       []LostRun
	LostBefore Seq
}

// Fate is what became of a record that is gone.
type Fate uint8

const (
	FateAcked     Fate = iota // taken, and acknowledged where it was leased
	FateUnknown               // that, or something else
	FateDead                  // handed out too often, it is in the stream KEY.dead
	FateDiscarded             // it was too old, or went for newer ones
	FateCleared               // its stream was, or was updated
	FateMoved                 // it is in another stream
	Fates                     // is how many there are
)

func (f Fate) String() string {
	return [...]string{"acknowledged", "gone without trace", "dead", "discarded", "cleared", "moved"}[f]
}

// LostRun are records of consecutive seqs with one fate.
type LostRun struct {
	First, Last Seq
	Fate        Fate
}

// FatesOf counts what became of the records of the seqs from first to last, which
// are gone.
func (s *StreamInfo) FatesOf(first, last Seq) (counts [Fates]uint64) {
	overlap := func(from, to Seq) uint64 {
		if from, to = max(from, first), min(to, last); from > to {
			return 0
		}
		return uint64(to-from) + 1
	}
	counts[FateUnknown] = overlap(first, s.LostBefore)
	counts[FateAcked] = overlap(first, last) - counts[FateUnknown]
	for _, run := range s.Lost {
		n, below := overlap(run.First, run.Last), overlap(run.First, min(run.Last, s.LostBefore))
		counts[run.Fate] += n
		counts[FateUnknown] -= below
		counts[FateAcked] -= n - below
	}
	return counts
}

// Full is what happens to a put into a full stream.
type Full uint32

const (
	FullWait       Full = iota // it waits
	FullRefuse                 // ErrFull
	FullDropOldest             // the oldest records are discarded, leased ones too
)

// String is the policy as `gearsfs set --full` reads it.
func (f Full) String() string {
	switch f {
	case FullWait:
		return "wait"
	case FullRefuse:
		return "refuse"
	case FullDropOldest:
		return "drop-oldest"
	}
	return strconv.FormatUint(uint64(f), 10)
}

// Settings are those of a stream beside its Limits.
type Settings struct {
	Age        time.Duration // after which records that can be taken are discarded; 0 is never
	Full       Full
	Tries      uint32        // deliveries after which a record that comes back goes to KEY.dead; 0 is any number
	Type       string        // the only type that can be put; "" is any
	IDWindow   time.Duration // how long ids are remembered; 0 is IDWindowDefault
	AppendOnly bool          // no truncation, no writing in place
	Memory     bool          // records are in the node's memory alone
}

// Store is where the records are kept, as `gearsfs set --store` reads it.
func (s *Settings) Store() string {
	if s.Memory {
		return "memory"
	}
	return "disk"
}

// Window is how long ids are remembered.
func (s *Settings) Window() time.Duration { return cmp.Or(s.IDWindow, IDWindowDefault) }

// IDWindowDefault and IDsMax bound what a stream remembers of ids.
const (
	IDWindowDefault = 24 * time.Hour
	IDsMax          = 1_000_000
)

// Entry is one name in a directory.
type Entry struct {
	Name string
	Attr Attr
}

// Usage is what statfs(2) shows: of the disk, or of the quota with the least room.
type Usage struct {
	BytesTotal, BytesFree uint64
	BytesAvail            uint64 // of those free, what can be had: a quota may be larger than the disk
	Inodes                uint64 // in use
	InodesFree            uint64
}

// FileLock is a lock on a range of a file: of flock(2), then on all of it, or
// of fcntl(2). The two do not mind each other.
type FileLock struct {
	Owner uint64 // within its session: locks of one owner do not mind each other
	Flock bool
	Write bool // nobody else may have a lock; else others may have such as it
	// Start and End are the first and the last byte, at most LockEnd.
	Start, End uint64
	PID        uint32 // who is said to have it
	Mine       bool   // of one that was found: it is of the same session
}

// LockEnd is the last byte that can be locked.
const LockEnd = 1<<63 - 1

// Quota bounds a directory with all that is below it.
type Quota struct {
	Bytes  uint64 // of the records of all streams of its files; 0 is no limit
	Inodes uint64 // the directory itself included; 0 is no limit

	BytesUsed, InodesUsed uint64
	Counting              bool // what was there before the quota is still being counted
}

// Wait describes one waiting operation.
type Wait struct {
	Session SessionID
	Client  string // "host pid command"
	Op      string // "take", "peek" or "put"
	Path    string // as asked for, or "ino N"
	Ino     Ino    // 0 where the file is missing
	Keys    []Key
	Since   time.Time
	Passed  uint32 // how often younger waiters ran before it
	Near    []Key  // existing keys that look like a misspelling
}

// NodeStatus describes a node and its replica of a volume.
type NodeStatus struct {
	Name, Volume, Version string
	Role                  string // "leader", "voter", "learner", or "removed"
	Leader                string
	Term                  uint64
	Commit, Applied       Index
	Durable               Index // applied entries up to here are on disk
	LogBytes, StateBytes  uint64
	Sessions              uint32
	Waits                 uint32
	Usage                 Usage
	Started               time.Time
	Warnings              []string
	Member                MemberID // 0 where the node is no member
	Last                  Index    // of the log
	LeaderSince           time.Time
	Voters, Learners      uint32
}

// Lag is how many entries are committed, as far as the node knows, and not applied.
func (s *NodeStatus) Lag() uint64 { return uint64(s.Commit - min(s.Commit, s.Applied)) }

// NodeInfo is what one node knows of another, or of itself, at some moment.
type NodeInfo struct {
	Member
	Role                  string // "leader", "voter", "learner"
	Reachable             bool
	Version               string
	Term                  uint64
	Commit, Applied, Last Index
	LagEntries, LagBytes  uint64 // applied behind what is committed
	LogBytes, StateBytes  uint64
	Trouble               string // why it is not reachable, or what it warns of
}

// Member is a node of a volume's group.
type Member struct {
	ID     MemberID
	Name   string   // no two members have the same
	NodeID [16]byte // of its data directory
	Addrs  string   // where it is reached, separated by commas
}

// Change tells a watcher what others changed: an inode's data or attributes,
// or the name Name in directory Ino.
type Change struct {
	Ino  Ino
	Name string // not empty: the directory entry, else the inode itself
	Data bool   // the inode's bytes, not only its attributes
}
