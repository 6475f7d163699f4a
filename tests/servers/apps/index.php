<?php
// Each answer names the process, and says its length: where it ended early could not be seen otherwise.
$body = 'pid=' . getmypid() . "\n";
header('Content-Length: ' . strlen($body));
echo $body;
