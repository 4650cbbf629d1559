package dgm

import (
	"context"
	"io"
	"time"

	"github.com/gearsfs/gearsfs"
)

// Manager is a DataGearManager: the whole API to one volume, as one session
// of it. Local runs it in this process, Remote is its proxy over a socket;
// both pass the suite in package dgm/dgmtest.
//
// All methods are safe for concurrent use. A method that waits does so until
// its context ends; it then returns the context's error and has changed
// nothing, unless the change was on its way already: then the true outcome is
// waited for and returned, so a cancelled Take loses no record. Only where a
// Remote can't learn the outcome it returns gearsfs.ErrMaybe. Byte slices that
// are passed in are not kept; those that come out belong to the caller.
//
// What Streams' methods acknowledge is on disk, and what they show is too.
// What the methods of Names and Content change survives the end of the
// process; Sync makes it durable.
type Manager interface {
	Streams
	Names
	Content
	Locks
	Node
	Cluster

	// Session is the id under which this Manager's leases and waiting
	// operations stand.
	Session() gearsfs.SessionID

	// Close ends the session: waiting operations end with gearsfs.ErrClosed and
	// what is leased goes back. It is idempotent and waits.
	io.Closer
}

// Streams are the operations on a file's queues.
type Streams interface {
	// Put appends records to a stream, all or none, making the file and the
	// stream where they are missing (not the directory). It waits while the
	// stream is full, or returns gearsfs.ErrFull. A sealed stream gives
	// gearsfs.ErrSealed; a full disk gearsfs.ErrNoSpace.
	Put(ctx context.Context, put Put) (PutResult, error)

	// Take removes or leases records from the head of the first of the keys
	// that has one, waiting for it, also for a file or key that is missing
	// (its directory must exist). Errors: gearsfs.ErrEmpty (NoWait),
	// gearsfs.ErrEnd (every key sealed and drained), gearsfs.ErrRemoved.
	Take(ctx context.Context, take Take) ([]gearsfs.Record, error)

	// Peek reads records without removing them, waiting as Take does.
	Peek(ctx context.Context, peek Peek) ([]gearsfs.Record, error)

	// Settle ends leases: acknowledged records are removed, returned ones go
	// back to their old places; or it extends them. All or none: gearsfs.ErrGone
	// where one of the leases is not held any more; a repeated acknowledgement is
	// ErrGone too. Where some are of streams in memory and some on disk, it is one
	// step for each kind: those on disk may be settled although one in memory ends
	// in that moment, and the reason says so.
	Settle(ctx context.Context, settle Settle) error

	// Update makes a record the only one of its stream, in one step; leases on
	// what was there end, and limits do not matter. gearsfs.ErrUnmet where IfSeq
	// is not the newest seq; ErrPermission where the stream is append-only.
	Update(ctx context.Context, update Update) (PutResult, error)

	// Transact does all its steps or none. Conditions, takes and looks see the
	// stream before it; then come its settlements, updates and puts. It waits,
	// holding nothing, until every take finds all its records (Max of them),
	// every condition is met and every put has room. With NoWait it fails at
	// once: gearsfs.ErrEmpty, ErrUnmet, ErrFull. Other errors are those of the
	// steps; their reason names the step, and nothing is done: gearsfs.ErrTooBig
	// where all takes and looks together are more than one take may be, or the
	// looks more than 1 MiB. Where the connection was lost and a lease has ended
	// before the answer came, its record is missing in the results, for the other
	// steps are done.
	Transact(ctx context.Context, tx Transact) ([]StepResult, error)

	// Move moves up to max records (0: all that are there now) that can be taken
	// from one stream of a file to the tail of another, in pieces that are each
	// atomic, and returns how many, also with an error: of gearsfs.ErrFull, ErrType
	// and ErrSealed where the next one can't be put there.
	Move(ctx context.Context, file gearsfs.File, from, to gearsfs.Key, max uint64) (uint64, error)

	// CopyFile makes a file with copies of all streams of another, one consistent
	// cut; a regular file that is there is replaced, but keeps its inode. What is
	// leased or delayed can be taken from the copy; ids are not copied.
	// gearsfs.ErrTooBig beyond 100,000 records, 64 MiB or 10,000 streams;
	// ErrPermission where a stream that would be replaced is append-only.
	CopyFile(ctx context.Context, from, to gearsfs.File) error

	// Configure seals, unseals, clears, drops or limits a stream. One that is missing
	// is made, but not only to be cleared or to have no seal: gearsfs.ErrNotFound. To
	// drop it is done already.
	Configure(ctx context.Context, file gearsfs.File, key gearsfs.Key, change StreamChange) error

	// ListStreams returns up to max streams of a file in the order of their
	// keys, beginning after the key `after`.
	ListStreams(ctx context.Context, file gearsfs.File, after gearsfs.Key, max int) ([]gearsfs.StreamInfo, error)

	// Stream describes one stream; a key that does not exist is described as
	// an empty stream.
	Stream(ctx context.Context, file gearsfs.File, key gearsfs.Key) (gearsfs.StreamInfo, error)
}

// Put is the argument of Streams.Put.
type Put struct {
	File    gearsfs.File
	Key     gearsfs.Key
	Records []gearsfs.NewRecord // 0 to BatchRecordsMax, at most BatchBytesMax
	Mode    uint32              // of a new file; 0 is 0644
	NoWait  bool
	Seal    bool // seal the stream behind these records
	// At is when they can be taken, log time; or Delay says how long after the
	// put. Until then they hold their place in the order.
	At    time.Time
	Delay time.Duration
}

// PutResult says where the records went.
type PutResult struct {
	Ino         gearsfs.Ino
	First, Last gearsfs.Seq // 0 where nothing was put
}

// Take is the argument of Streams.Take.
type Take struct {
	File   gearsfs.File
	Keys   []gearsfs.Key // 1 to 64, in order of preference
	Max    int           // records at most; 0 is 1
	NoWait bool
	Lease  bool // hand out under a lease that ends with the session
	Force  bool // also take from a data stream that was written as blocks

	// With Lease. LeaseFor bounds it by log time; with ByReceipt, which needs
	// LeaseFor, whoever has the receipt holds it and it does not end with the
	// session. Tries is after how many deliveries a record that comes back goes
	// to the stream KEY.dead; 0 is what the stream says.
	LeaseFor  time.Duration
	ByReceipt bool
	Tries     uint32
}

// Peek is the argument of Streams.Peek. Without After and Last it shows the
// head of what could be taken; with After, records with a greater seq whether
// they are leased or not.
type Peek struct {
	File   gearsfs.File
	Key    gearsfs.Key
	Max    int // records at most; 0 is 1
	NoWait bool
	Follow bool        // show what is newer than After, also where After is 0
	After  gearsfs.Seq // with Follow
	Last   bool        // the newest record
	// Gone, where it is not 0, waits instead until no record is left of those
	// from After+1 to Gone (to be taken, leased or delayed), and shows none:
	// gearsfs.ErrUnmet where NoWait is set and some are. Records that went
	// to another stream, or were discarded, are not left either.
	Gone gearsfs.Seq
}

// Settle is the argument of Streams.Settle.
type Settle struct {
	Receipts []gearsfs.Receipt // of this session, 1 to BatchRecordsMax
	Return   bool              // give the records back instead of acknowledging
	Delay    time.Duration     // with Return: before they can be taken again
	Extend   time.Duration     // keep the leases, until so long from now
	Tries    uint32            // with Return: as in Take; 0 is what the lease says
}

// Update is the argument of Streams.Update.
type Update struct {
	File   gearsfs.File
	Key    gearsfs.Key
	Record gearsfs.NewRecord
	Mode   uint32       // of a new file; 0 is 0644
	IfSeq  *gearsfs.Seq // only where this is the newest seq that was put; 0: where none was
}

// Transact is the argument of Streams.Transact: at most 64 steps.
type Transact struct {
	Steps  []Step
	NoWait bool
}

// Step is one of a transaction; exactly one pointer is set. NoWait in a step
// has no meaning.
type Step struct {
	Condition *Condition
	Take      *Take // of exactly Max records
	Look      *Look
	Settle    *Settle
	Update    *Update
	Put       *Put
}

// Condition is met when all that is set in it holds.
type Condition struct {
	File    gearsfs.File
	Key     gearsfs.Key
	Newest  *gearsfs.Seq // the newest seq that was put, 0 where none was
	Head    *gearsfs.Seq // of the first record that can be taken, 0 where none can
	Empty   *bool        // whether no record is left, leased or delayed
	AtLeast uint64       // records can be taken
}

// Look is a peek in a transaction: it does not wait.
type Look struct {
	File gearsfs.File
	Key  gearsfs.Key
	Max  int // 0 is 1
}

// StepResult is what came of one step: of a take or look the records, of an
// update or put where they went.
type StepResult struct {
	Records []gearsfs.Record
	Put     PutResult
}

// StreamChange is what Configure does; nil and false leave a thing as it is.
type StreamChange struct {
	Seal   *bool
	Clear  bool // remove all records, ending the leases on them
	Drop   bool // remove the stream; not the data stream
	Limits *gearsfs.Limits
	// Set changes settings; nil leaves one as it is.
	Set SettingsChange
}

// SettingsChange is a change of gearsfs.Settings.
type SettingsChange struct {
	Age        *time.Duration
	Full       *gearsfs.Full
	Tries      *uint32
	Type       *string
	IDWindow   *time.Duration
	AppendOnly *bool
	Memory     *bool // needs a stream without records, and a volume of one node
}

// Names are the operations on the tree. They have the meaning of the POSIX
// calls that they are named for, the rules for permissions included, and
// return the errors that stand for the errnos of those.
type Names interface {
	Lookup(ctx context.Context, dir gearsfs.Ino, name string) (gearsfs.Attr, error)
	// Resolve follows a path from the root; the last component's symbolic
	// link only where follow is set.
	Resolve(ctx context.Context, path string, follow bool) (gearsfs.Attr, error)
	GetAttr(ctx context.Context, ino gearsfs.Ino) (gearsfs.Attr, error)
	SetAttr(ctx context.Context, ino gearsfs.Ino, set SetAttr) (gearsfs.Attr, error)
	// Make makes a file, directory, symbolic link or special file, by the type
	// in Mode. Where the name exists it returns gearsfs.ErrExists, or, with Open
	// and a regular file there, that file.
	Make(ctx context.Context, dir gearsfs.Ino, name string, make Make) (gearsfs.Attr, error)
	Link(ctx context.Context, ino gearsfs.Ino, dir gearsfs.Ino, name string) (gearsfs.Attr, error)
	// Unlink removes a name of anything but a directory, Rmdir that of an
	// empty directory. The inode stays while it is open (see Content.Open).
	Unlink(ctx context.Context, dir gearsfs.Ino, name string) error
	Rmdir(ctx context.Context, dir gearsfs.Ino, name string) error
	Rename(ctx context.Context, rename Rename) error
	Readlink(ctx context.Context, ino gearsfs.Ino) (string, error)
	// ReadDir returns up to max entries in the order of their names' bytes,
	// beginning after the name `after`; "." and ".." are not among them.
	ReadDir(ctx context.Context, dir gearsfs.Ino, after string, max int) ([]gearsfs.Entry, error)
	// Parent returns the directory that a directory is in, the root's is itself.
	Parent(ctx context.Context, dir gearsfs.Ino) (gearsfs.Ino, error)
	GetXattr(ctx context.Context, ino gearsfs.Ino, name string) ([]byte, error)
	// SetXattr's flags are those of setxattr(2).
	SetXattr(ctx context.Context, ino gearsfs.Ino, name string, value []byte, flags uint32) error
	ListXattr(ctx context.Context, ino gearsfs.Ino) ([]string, error)
	RemoveXattr(ctx context.Context, ino gearsfs.Ino, name string) error
	// StatFS shows the space of an inode's volume, or of the quota with the least
	// room that it counts under.
	StatFS(ctx context.Context, at gearsfs.Ino) (gearsfs.Usage, error)

	// SetQuota bounds what a directory and all below it may hold: what would make
	// it more gets gearsfs.ErrQuota; takes, removals, truncation and writes in
	// place go on, also where more is in use already. What is there is counted: at
	// once where that is little, else after SetQuota has returned, and the quota is
	// enforced as far as it is counted. Moving a directory that is not empty, or one
	// of a file's several names, from under one quota to another, and making a
	// second name there, is gearsfs.ErrCross. Errors: gearsfs.ErrBusy while another
	// quota is being counted, ErrNotDir, ErrStale, ErrPermission for who is not the
	// owner of the volume's root directory, ErrNotFound (Remove: none is set).
	SetQuota(ctx context.Context, dir gearsfs.Ino, set SetQuota) error
	// Quota returns the quota that is set on a directory: gearsfs.ErrNotFound
	// where none is.
	Quota(ctx context.Context, dir gearsfs.Ino) (gearsfs.Quota, error)
}

// SetQuota is the argument of Names.SetQuota; nil leaves a limit as it is, which
// is none where the quota is new. 0 is no limit: what is in use is counted.
type SetQuota struct {
	Bytes, Inodes *uint64
	Remove        bool // take the quota away
}

// SetAttr is the argument of Names.SetAttr; nil leaves a value as it is.
type SetAttr struct {
	Mode     *uint32 // permission bits
	UID, GID *uint32
	// Size truncates or extends; it counts from Base, the head as it was when
	// the file was opened, or from the current head where Base is nil.
	Size *uint64
	Base *gearsfs.Pos
	// Atime and Mtime; the zero Time means now.
	Atime, Mtime *time.Time
	// Ctime, where the kernel keeps it (write-back cache).
	Ctime *time.Time
}

// Make is the argument of Names.Make.
type Make struct {
	Mode   uint32 // type and permissions
	Umask  uint32 // to take off them, unless the directory has a default access control list
	Rdev   uint32
	Target string // of a symbolic link
	Open   bool   // an existing regular file will do
	UID    *uint32
	GID    *uint32 // owner where it is not the session's caller
}

// Rename is the argument of Names.Rename. Flags are those of renameat2(2).
type Rename struct {
	Dir     gearsfs.Ino
	Name    string
	NewDir  gearsfs.Ino
	NewName string
	Flags   uint32
}

// Content are the operations on a file's bytes: its data stream as POSIX sees
// it. They count in stream positions, so offset 0 of a file opened when its
// head was at Attr.Head is that position ever after.
type Content interface {
	// Open keeps the inode while it is open, also when its last name goes; each
	// Open needs one Release. It returns the attributes as of now.
	Open(ctx context.Context, ino gearsfs.Ino) (gearsfs.Attr, error)
	// Create is Names.Make and then Open of what was made, in one request. It opens it
	// as it was made, or as of some time since then, and so need not ask a majority what
	// others have done meanwhile. gearsfs.ErrStale where others have removed it before
	// it was open. With an error the attributes have the inode, and nothing else, where
	// it was made all the same.
	Create(ctx context.Context, dir gearsfs.Ino, name string, m Make) (gearsfs.Attr, error)
	Release(ctx context.Context, ino gearsfs.Ino) error
	// LetGo is a Release that nobody waits for: where the volume is in another process
	// it hears of it with this session's next request, or 10 ms later. Until then
	// the inode stays.
	LetGo(ctx context.Context, ino gearsfs.Ino) error
	// Read returns up to n bytes (at most 1 MiB) from pos on; fewer only at
	// the tail, none at or behind it. What was taken and gaps read as zeros.
	// What it returns is the caller's, and may be in buf: it is where buf has
	// room for it and this node reads it. With an error buf has anything.
	Read(ctx context.Context, ino gearsfs.Ino, pos gearsfs.Pos, n int, buf []byte) ([]byte, error)
	// Write replaces or adds bytes at pos; gearsfs.ErrIO before the head.
	Write(ctx context.Context, ino gearsfs.Ino, pos gearsfs.Pos, data []byte) (gearsfs.Attr, error)
	// Save is Write and then Names.SetAttr, of anything but the size, as one:
	// both or neither.
	Save(ctx context.Context, ino gearsfs.Ino, pos gearsfs.Pos, data []byte, s SetAttr) (gearsfs.Attr, error)
	// Append is a Put of one record on the data stream that does not wait for
	// the disk, though for room in a limited stream.
	Append(ctx context.Context, ino gearsfs.Ino, data []byte) (gearsfs.Attr, error)
	// Allocate is fallocate(2), by its mode bits.
	Allocate(ctx context.Context, ino gearsfs.Ino, pos gearsfs.Pos, n uint64, mode uint32) error
	// CopyRange is copy_file_range(2): bytes that are in the block store are
	// shared, not copied. It may copy less than asked for, and says how much: 0
	// at the end of the source. The attributes are the target's.
	CopyRange(ctx context.Context, c CopyRange) (n uint64, target gearsfs.Attr, err error)
	// Seek finds the next data (hole false) or hole at or behind pos;
	// gearsfs.ErrRange, for ENXIO, behind the tail.
	Seek(ctx context.Context, ino gearsfs.Ino, pos gearsfs.Pos, hole bool) (gearsfs.Pos, error)
	// Sync returns when all that this volume answered before is on disk.
	Sync(ctx context.Context) error
}

// CopyRange is the argument of Content.CopyRange; both may be the same file where
// the ranges don't overlap.
type CopyRange struct {
	From    gearsfs.Ino
	FromPos gearsfs.Pos
	To      gearsfs.Ino
	ToPos   gearsfs.Pos
	Length  uint64
}

// Locks are locks on files over all that use the volume, as those of flock(2) and
// fcntl(2). A session has them for owners of its own: locks of different owners,
// or sessions, exclude each other. They end with the session, and with the
// file. They are fair: who has no lock waits behind those who came before. They are
// in the state, so they survive a change of leader; but they are not waited for
// to be on disk, and no read or write minds them.
type Locks interface {
	// Lock lets an owner have a lock, in the place of what it has in that range. It
	// waits while another's is in the way, holding what it had; with noWait it
	// returns gearsfs.ErrLocked. Errors: gearsfs.ErrDeadlock where those in the way
	// wait for the owner (of fcntl locks), ErrLocks, ErrAccess, ErrStale, ErrInvalid.
	Lock(ctx context.Context, ino gearsfs.Ino, lock gearsfs.FileLock, noWait bool) error
	// Unlock gives up what an owner has in a range.
	Unlock(ctx context.Context, ino gearsfs.Ino, lock gearsfs.FileLock) error
	// LockInTheWay returns a lock of another owner that keeps this from being
	// had, nil where there is none.
	LockInTheWay(ctx context.Context, ino gearsfs.Ino, lock gearsfs.FileLock) (*gearsfs.FileLock, error)
}

// Node are the operations on the node itself.
type Node interface {
	Status(ctx context.Context) (gearsfs.NodeStatus, error)
	Waits(ctx context.Context) ([]gearsfs.Wait, error)
	// Near returns keys that look like misspellings of keys of a file, which need
	// not exist: for a take that has waited in vain.
	Near(ctx context.Context, file gearsfs.File, keys []gearsfs.Key) ([]gearsfs.Key, error)
	// SetRemote names another node's addresses; "" removes the name.
	SetRemote(ctx context.Context, name, addrs string) error
	Remotes(ctx context.Context) (map[string]string, error)
	// Watch calls changed with what other sessions change, in order, until ctx
	// ends. A watcher that falls behind gets gearsfs.ErrOverload and must take
	// everything as changed. started is called once nothing is missed any more.
	Watch(ctx context.Context, started func(), changed func([]gearsfs.Change)) error
}

// Cluster are the operations on the nodes that a volume is replicated by. What
// changes something waits for the node that leads; permission for it has the
// owner of the volume's root directory.
type Cluster interface {
	// Nodes describes the nodes, those included that can't be reached.
	Nodes(ctx context.Context) ([]gearsfs.NodeInfo, error)
	// RemoveNode removes a node for ever; returns when the others have agreed.
	// Errors: gearsfs.ErrNotFound, and gearsfs.ErrBusy for the one that leads.
	RemoveNode(ctx context.Context, name string) error
	// TransferLeader lets another node lead; returns when it does.
	TransferLeader(ctx context.Context, name string) error
	// Verify has every node compare its state with the others' at one index:
	// gearsfs.ErrDamaged names those that differ.
	Verify(ctx context.Context) error
}
