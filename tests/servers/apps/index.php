pid=<?= getmypid() ?>

