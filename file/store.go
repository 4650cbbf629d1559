package file

// Store is where the state machine keeps its tables: an ordered map of bytes
// with one open batch. Only the goroutine that applies entries uses it, but
// for View; the keys are made by package persist's key functions.
//
// Errors of Set, Add, Delete and DeleteRange come out of Commit.
type Store interface {
	Reader // sees what is committed and the open batch
	Set(key, value []byte)
	// Add is Set of a row that there is not: one that is deleted again before long
	// costs less.
	Add(key, value []byte)
	Delete(key []byte)
	DeleteRange(lo, hi []byte) // [lo, hi)
	// Commit applies the open batch atomically and begins a new one. It does
	// not wait for the disk: the log makes it durable.
	Commit() error
	// View returns the committed state as of now for a reader of any
	// goroutine; it must be closed.
	View() View
}

// Reader reads the tables. Keys and values that are passed in are not kept.
type Reader interface {
	// Get appends the value to buf and returns it; ok is false where there is none.
	Get(key, buf []byte) (value []byte, ok bool, err error)
	// Scan iterates over [lo, hi) as of the call.
	Scan(lo, hi []byte) (Iterator, error)
}

// View is a Reader of one moment. It and Iterator are aliases so that a store
// has methods that return them without importing this package.
type View = interface {
	Reader
	Close() error
}

// Iterator walks over keys in order. It begins unpositioned; Key and Value are
// valid until the next call. Each moving method reports whether it stands on a
// key; after false, Close tells whether an error ended it.
type Iterator = interface {
	First() bool
	Last() bool
	SeekGE(key []byte) bool
	SeekLT(key []byte) bool
	Next() bool
	Prev() bool
	Key() []byte
	Value() []byte
	Close() error
}
