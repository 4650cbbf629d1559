package replica

// simKept are seeds that once showed something wrong.
var simKept = []struct {
	seed  uint64
	found string
}{}
